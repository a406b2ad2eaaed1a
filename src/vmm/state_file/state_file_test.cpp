// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/bytes.hpp"
#include "base/crc32c.hpp"
#include "base/test_folder.hpp"
#include "vmm/state_file/state_file.hpp"

using namespace doppel;
using namespace doppel::vmm;
using memory::kPageBytes;
namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kPages = 700; // more than two chunks of the writer, the last not full

std::unique_ptr<memory::GuestMemory> make_memory() {
    const std::array<memory::RamRegion, 2> regions{
        {{{0}, 100 * kPageBytes}, {{1u << 24}, (kPages - 100) * kPageBytes}}};
    return memory::GuestMemory::create(regions).value();
}

std::vector<std::byte> contents(const memory::GuestMemory& memory) {
    std::vector<std::byte> bytes(memory.size_bytes());
    REQUIRE(memory.read_linear(0, bytes));
    return bytes;
}

SavedVm example() {
    SavedVm vm;
    vm.writer = "doppel 1.2";
    vm.machine = "{}";
    vm.cpuid = {1, 2, 3, 4, 5, 6, 7};
    vm.clocks = {123, 456, 2'000'000'000, 1'700'000'000, 999'999'999};
    vm.vcpus = {{"vcpu-0", {std::byte{1}, std::byte{2}}}};
    vm.chips = {{"pic", {}}, {"pit", {std::byte{3}}}};
    return vm;
}

/// A folder of its own, with one state file in it.
struct Rig {
    base::TestFolder own{"doppel-state"};
    fs::path folder = own.path();
    std::string path = folder / "vm.state";
    std::unique_ptr<memory::GuestMemory> memory = make_memory();

    Rig() {
        std::mt19937 random{1};
        for (std::uint64_t page = 0; page < kPages; ++page) {
            if (page % 3 == 1 || (page > 300 && page < 600))
                continue; // never written
            std::array<std::byte, kPageBytes> bytes{};
            if (page % 5 != 0) // else written, with zeros
                for (auto& byte : bytes)
                    byte = static_cast<std::byte>(random());
            REQUIRE(memory->write_linear(page * kPageBytes, bytes));
        }
        save();
    }
    Rig(const Rig&) = delete;
    Rig& operator=(const Rig&) = delete;

    void save() {
        auto writer = StateFileWriter::create(path).value();
        auto ram = writer.ram(*memory);
        REQUIRE(ram.write_all({}));
        REQUIRE(writer.commit(example(), memory->size_bytes()));
    }
    std::string why_not() const {
        const auto file = StateFile::open(path);
        return file ? "" : file.error().message();
    }
    void patch(std::uint64_t offset, std::span<const std::byte> bytes) const {
        const base::UniqueFd fd{::open(path.c_str(), O_RDWR)};
        REQUIRE(::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)) ==
                static_cast<ssize_t>(bytes.size()));
    }
    std::byte byte_at(std::uint64_t offset) const {
        std::byte byte{};
        const base::UniqueFd fd{::open(path.c_str(), O_RDONLY)};
        REQUIRE(::pread(fd.get(), &byte, 1, static_cast<off_t>(offset)) == 1);
        return byte;
    }
    std::size_t files() const {
        return static_cast<std::size_t>(
            std::distance(fs::directory_iterator{folder}, fs::directory_iterator{}));
    }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "what was saved is loaded: RAM to the last byte, and the rest") {
    const auto file = StateFile::open(path);
    REQUIRE(file);
    CHECK(encode_saved_vm(file->vm()) == encode_saved_vm(example()));
    auto copy = make_memory();
    REQUIRE(file->load_ram(*copy));
    CHECK(contents(*copy) == contents(*memory));
    CHECK(files() == 1);
}

TEST_CASE_FIXTURE(Rig, "saving again gives the same bytes; others cannot read them") {
    const auto bytes = [&] {
        std::ifstream stream{path, std::ios::binary};
        return std::string{std::istreambuf_iterator<char>{stream}, {}};
    };
    const auto first = bytes();
    save(); // over the old file
    CHECK(bytes() == first);
    struct stat info{};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0600);
}

TEST_CASE_FIXTURE(Rig, "zero pages take no room in the file") {
    struct stat info{};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    CHECK(static_cast<std::uint64_t>(info.st_blocks) * 512 < kPages * kPageBytes / 2);
    CHECK(static_cast<std::uint64_t>(info.st_size) > kPages * kPageBytes);
}

TEST_CASE_FIXTURE(Rig, "a copy that has lost its holes takes no more RAM than the file itself") {
    const auto allocated = [](const memory::GuestMemory& ram) {
        struct stat info{};
        REQUIRE(::fstat(ram.fd(), &info) == 0);
        return info.st_blocks;
    };
    auto from_holes = make_memory();
    REQUIRE(StateFile::open(path).value().load_ram(*from_holes));
    {
        const base::UniqueFd fd{::open(path.c_str(), O_RDWR)};
        std::vector<std::byte> all(fs::file_size(path));
        REQUIRE(::pread(fd.get(), all.data(), all.size(), 0) == std::ssize(all));
        REQUIRE(::pwrite(fd.get(), all.data(), all.size(), 0) == std::ssize(all));
    }
    auto from_copy = make_memory();
    REQUIRE(StateFile::open(path).value().load_ram(*from_copy));
    CHECK(allocated(*from_copy) == allocated(*from_holes));
    CHECK(static_cast<std::uint64_t>(allocated(*from_copy)) * 512 < kPages * kPageBytes / 2);
    CHECK(contents(*from_copy) == contents(*memory)); // last: looking makes pages
}

TEST_CASE_FIXTURE(Rig, "rounds of a dirty log bring the file up to date, pages gone zero too") {
    auto writer = StateFileWriter::create(path).value();
    auto ram = writer.ram(*memory);
    memory->start_dirty_log();
    REQUIRE(ram.write_all({}));
    for (const std::uint64_t page : {0u, 1u, 2u, 64u, 99u, 100u, 400u, 699u})
        REQUIRE(memory->write_linear(page * kPageBytes + 17, std::array{std::byte{0xaa}}));
    REQUIRE(memory->write_linear(7 * kPageBytes, std::array<std::byte, kPageBytes>{}));
    const auto before = ram.written_bytes();
    REQUIRE(ram.write_pages(memory->harvest_dirty_log()));
    CHECK(ram.written_bytes() - before == 8 * kPageBytes); // page 7 became a hole
    REQUIRE(writer.commit(example(), memory->size_bytes()));
    auto copy = make_memory();
    REQUIRE(StateFile::open(path).value().load_ram(*copy));
    CHECK(contents(*copy) == contents(*memory));
}

TEST_CASE_FIXTURE(Rig, "work that was stopped leaves the old file and nothing else") {
    const auto before = fs::last_write_time(path);
    {
        auto writer = StateFileWriter::create(path).value();
        auto ram = writer.ram(*memory);
        const auto stopped = ram.write_all([](std::uint64_t) { return false; });
        REQUIRE(!stopped);
        CHECK(stopped.error().code == base::Errc::Interrupted);
        CHECK(files() == 2);
    }
    CHECK(files() == 1);
    CHECK(fs::last_write_time(path) == before);
    CHECK(why_not().empty());
}

TEST_CASE_FIXTURE(Rig, "places that cannot become a state file are refused at once") {
    CHECK(!StateFileWriter::create(folder));
    CHECK(!StateFileWriter::create("/dev/null"));
    CHECK(!StateFileWriter::create(""));
    CHECK(StateFileWriter::create(folder / "none" / "x").error().code == base::Errc::NotFound);
}

TEST_CASE_FIXTURE(Rig, "whatever is missing, foreign or cut short is refused with a sentence") {
    const auto size = fs::file_size(path);
    fs::resize_file(path, size - 1);
    CHECK(why_not().find("bytes instead of") != std::string::npos);
    fs::resize_file(path, size + 1);
    CHECK(why_not().find("bytes instead of") != std::string::npos);
    for (const std::uintmax_t length : {0u, 1u, 4095u, 4096u, 3u << 20}) {
        fs::resize_file(path, length);
        CHECK(!why_not().empty());
    }
    std::ofstream{path} << std::string(10'000, 'x');
    CHECK(why_not().find("not a saved VM") != std::string::npos);
    fs::remove(path);
    CHECK(StateFile::open(path).error().code == base::Errc::NotFound);
    CHECK(StateFile::open(folder).error().code == base::Errc::InvalidArgument);
}

TEST_CASE_FIXTURE(Rig, "every flipped bit of header and metadata is found") {
    const auto size = fs::file_size(path);
    const auto metadata = (2u << 20) + kPages * kPageBytes;
    std::vector<std::uint64_t> places;
    for (std::uint64_t at = 0; at < 64; ++at)
        places.push_back(at);
    for (std::uint64_t at = 64; at < 4096; at += 97)
        places.push_back(at);
    for (std::uint64_t at = metadata; at < size; ++at)
        places.push_back(at);
    for (const auto at : places) {
        const auto good = byte_at(at);
        patch(at, std::array{good ^ static_cast<std::byte>(1u << at % 8)});
        CAPTURE(at);
        REQUIRE(!why_not().empty());
        patch(at, std::array{good});
    }
    CHECK(why_not().empty());
}

TEST_CASE_FIXTURE(Rig, "a newer format and hostile places with a right checksum are refused") {
    std::array<std::byte, 4096> header{};
    const base::UniqueFd fd{::open(path.c_str(), O_RDONLY)};
    REQUIRE(::pread(fd.get(), header.data(), header.size(), 0) == 4096);
    const auto refuses = [&](std::size_t at, auto value) {
        auto bytes = header;
        base::store_le(&bytes[at], value);
        base::store_le(&bytes[12], std::uint32_t{0});
        base::store_le(&bytes[12], base::crc32c(bytes));
        patch(0, bytes);
        return why_not();
    };
    CHECK(refuses(8, std::uint32_t{2}).find("the format is 2") != std::string::npos);
    for (const std::size_t field : {16u, 24u, 32u, 40u})
        for (const std::uint64_t value : {0ull, 1ull, 4096ull, 1ull << 62, ~0ull})
            CHECK(refuses(field, value).find("damaged") != std::string::npos);
    patch(0, header);
    CHECK(why_not().empty());
}

TEST_CASE("metadata that is cut anywhere is refused, clocks that cannot be are too") {
    const auto bytes = encode_saved_vm(example());
    REQUIRE(decode_saved_vm(bytes));
    for (std::size_t length = 0; length < bytes.size(); ++length)
        CHECK(!decode_saved_vm(std::span{bytes}.first(length)));
    auto longer = bytes;
    longer.push_back({});
    CHECK(!decode_saved_vm(longer));
    for (const auto& clocks :
         {SavedClocks{1, 1, 0, 1, 1}, SavedClocks{1, 1, ~0ull, 1, 1},
          SavedClocks{~0ull, 1, 1'000'000'000, 1, 1}, SavedClocks{1, 1, 1'000'000'000, ~0ull, 1},
          SavedClocks{1, 1, 1'000'000'000, 1, 1'000'000'000}}) {
        auto vm = example();
        vm.clocks = clocks;
        CHECK(!decode_saved_vm(encode_saved_vm(vm)));
    }
}
