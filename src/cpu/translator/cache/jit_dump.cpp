// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/cache/jit_dump.hpp"

#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include <fmt/core.h>

namespace doppel::cpu::translator {

namespace {

constexpr std::uint32_t kMagic = 0x4a69'5444;
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kCodeLoad = 0;
constexpr std::size_t kMarkerBytes = 4096;

struct FileHeader {
    std::uint32_t magic = kMagic, version = kVersion, size = sizeof(FileHeader);
    std::uint32_t machine = EM_X86_64, padding = 0, process = 0;
    std::uint64_t time_ns = 0, flags = 0;
};
static_assert(sizeof(FileHeader) == 40);

struct CodeLoad {
    std::uint32_t kind = kCodeLoad, size = 0;
    std::uint64_t time_ns = 0;
    std::uint32_t process = 0, thread = 0;
    std::uint64_t address = 0, code_address = 0, code_size = 0, index = 0;
};
static_assert(sizeof(CodeLoad) == 56);

/// The clock of `perf record -k mono`.
std::uint64_t now_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u +
           static_cast<std::uint64_t>(now.tv_nsec);
}

} // namespace

base::Result<std::unique_ptr<JitDump>> JitDump::create(const std::string& directory) {
    const std::string path = fmt::format("{}/jit-{}.dump", directory, ::getpid());
    std::FILE* const file = std::fopen(path.c_str(), "w+e");
    if (file == nullptr)
        return base::fail_errno(errno, fmt::format("cannot make jitdump file '{}'", path),
                                "name a directory that can be written to");
    std::unique_ptr<JitDump> dump{new JitDump{path, file}};
    const FileHeader header{.process = static_cast<std::uint32_t>(::getpid()), .time_ns = now_ns()};
    if (std::fwrite(&header, sizeof header, 1, file) != 1 || std::fflush(file) != 0)
        return base::fail_errno(errno, fmt::format("cannot write jitdump file '{}'", path), "");
    void* const marker =
        ::mmap(nullptr, kMarkerBytes, PROT_READ | PROT_EXEC, MAP_PRIVATE, ::fileno(file), 0);
    if (marker == MAP_FAILED)
        return base::fail_errno(errno, fmt::format("cannot map jitdump file '{}'", path),
                                "perf finds it by an executable mapping: put it on a file system "
                                "that is not mounted noexec");
    dump->marker_ = marker;
    return dump;
}

JitDump::~JitDump() {
    if (marker_ != nullptr)
        ::munmap(marker_, kMarkerBytes);
    std::fclose(file_);
}

void JitDump::add(std::string_view name, std::span<const std::uint8_t> code) {
    const auto address = reinterpret_cast<std::uintptr_t>(code.data());
    const CodeLoad load{
        .size = static_cast<std::uint32_t>(sizeof(CodeLoad) + name.size() + 1 + code.size()),
        .time_ns = now_ns(),
        .process = static_cast<std::uint32_t>(::getpid()),
        .thread = static_cast<std::uint32_t>(::gettid()),
        .address = address,
        .code_address = address,
        .code_size = code.size(),
        .index = count_++};
    (void)std::fwrite(&load, sizeof load, 1, file_);
    (void)std::fwrite(name.data(), 1, name.size(), file_);
    (void)std::fputc(0, file_);
    (void)std::fwrite(code.data(), 1, code.size(), file_);
}

} // namespace doppel::cpu::translator
