// SPDX-License-Identifier: Apache-2.0
#include "block/codec/codec.hpp"

#include <dlfcn.h>
#include <isa-l/igzip_lib.h>
#include <libdeflate.h>
#include <zstd.h>

#include <algorithm>
#include <memory>

#include <fmt/core.h>

namespace doppel::block::codec {

using base::Errc;

namespace {

constexpr int kBestDeflate = 12;
constexpr int kFastZstd = 1;
constexpr int kBestZstd = 19;
/// zstd's table for 64 KiB fills a CPU's first cache; one of half that size costs 0.7 % of size and
/// saves 7 % of the time.
constexpr std::size_t kUsualCluster = 64u << 10;
constexpr int kSmallTable = 12;

template <auto Function> struct Calls {
    template <typename T> void operator()(T* object) const { Function(object); }
};
using Deflater = std::unique_ptr<libdeflate_compressor, Calls<libdeflate_free_compressor>>;
using Inflater = std::unique_ptr<libdeflate_decompressor, Calls<libdeflate_free_decompressor>>;
using ZstdOut = std::unique_ptr<ZSTD_CCtx, Calls<ZSTD_freeCCtx>>;
using ZstdIn = std::unique_ptr<ZSTD_DCtx, Calls<ZSTD_freeDCtx>>;

/// Loaded by the first who compresses: most calls of doppel-img do not, and would wait for it.
struct IsaL {
    decltype(&isal_deflate_stateless_init) begin;
    decltype(&isal_deflate_stateless) deflate;
};

const IsaL* isa_l() {
    static const IsaL kCalls = [] {
        void* const library = ::dlopen("libisal.so.2", RTLD_NOW | RTLD_LOCAL); // stays
        const auto find = [&](const char* name) {
            return library == nullptr ? nullptr : ::dlsym(library, name);
        };
        return IsaL{
            reinterpret_cast<decltype(IsaL::begin)>(find("isal_deflate_stateless_init")),
            reinterpret_cast<decltype(IsaL::deflate)>(find("isal_deflate_stateless")),
        };
    }();
    return kCalls.begin != nullptr && kCalls.deflate != nullptr ? &kCalls : nullptr;
}

/// Levels of ISA-L's igzip, measured on files of Debian's /usr in pieces of 64 KiB. A raw stream is
/// compared with QEMU's, whose window has 4 KiB: level 2 makes it 1 % larger than that, 1 another 1
/// % and is no faster. In a zlib stream QEMU's window has 32 KiB: 3 makes it 5 % larger, 2 8 %.
struct Igzip {
    std::uint32_t level;
    std::size_t workspace;
    std::uint16_t wrapper;
};
constexpr Igzip kRaw{2, ISAL_DEF_LVL2_DEFAULT, IGZIP_DEFLATE};
constexpr Igzip kZlib{3, ISAL_DEF_LVL3_DEFAULT, IGZIP_ZLIB};

/// 0: the output does not fit, or there is no igzip.
std::size_t igzip(const Igzip& how, std::span<const std::byte> data, std::span<std::byte> out) {
    const auto* const calls = isa_l();
    if (calls == nullptr)
        return 0;
    static thread_local std::vector<std::uint8_t> workspace;
    static thread_local auto stream = std::make_unique<isal_zstream>();
    workspace.resize(std::max(workspace.size(), how.workspace));
    calls->begin(stream.get());
    stream->level = how.level;
    stream->level_buf = workspace.data();
    stream->level_buf_size = static_cast<std::uint32_t>(workspace.size());
    stream->gzip_flag = how.wrapper;
    stream->end_of_stream = 1;
    stream->flush = NO_FLUSH;
    stream->next_in = reinterpret_cast<std::uint8_t*>(const_cast<std::byte*>(data.data()));
    stream->avail_in = static_cast<std::uint32_t>(data.size());
    stream->next_out = reinterpret_cast<std::uint8_t*>(out.data());
    stream->avail_out = static_cast<std::uint32_t>(out.size());
    return calls->deflate(stream.get()) == COMP_OK && stream->avail_in == 0
               ? out.size() - stream->avail_out
               : 0;
}

/// Room for one cluster's output, kept: most results are much smaller than their limit.
std::span<std::byte> scratch(std::size_t size) {
    static thread_local std::vector<std::byte> memory;
    if (memory.size() < size)
        memory.resize(size);
    return std::span{memory}.first(size);
}

std::vector<std::byte> result(std::span<const std::byte> out, std::size_t size) {
    const auto used = out.first(size < out.size() ? size : 0);
    return {used.begin(), used.end()};
}

} // namespace

std::vector<std::byte> deflate(std::span<const std::byte> data, std::size_t limit, Effort effort) {
    const auto out = scratch(limit);
    std::size_t size = 0;
    if (effort == Effort::Fast && isa_l() != nullptr) {
        size = igzip(kRaw, data, out);
    } else {
        static thread_local const Deflater deflater{libdeflate_alloc_compressor(kBestDeflate)};
        size = libdeflate_deflate_compress(deflater.get(), data.data(), data.size(), out.data(),
                                           out.size());
    }
    return result(out, size);
}

std::vector<std::byte> zlib(std::span<const std::byte> data, Effort effort) {
    static thread_local const Deflater deflater{libdeflate_alloc_compressor(kBestDeflate)};
    const auto out = scratch(libdeflate_zlib_compress_bound(deflater.get(), data.size()) + 1);
    std::size_t size = effort == Effort::Fast ? igzip(kZlib, data, out) : 0;
    if (size == 0) // igzip gives up where the output would not fit
        size = libdeflate_zlib_compress(deflater.get(), data.data(), data.size(), out.data(),
                                        out.size());
    return result(out, size);
}

std::vector<std::byte> zstd(std::span<const std::byte> data, std::size_t limit, Effort effort) {
    static thread_local const ZstdOut context{ZSTD_createCCtx()};
    const auto out = scratch(limit);
    const bool fast = effort == Effort::Fast;
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, fast ? kFastZstd : kBestZstd);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_hashLog,
                           fast && data.size() == kUsualCluster ? kSmallTable : 0);
    const auto size =
        ZSTD_compress2(context.get(), out.data(), out.size(), data.data(), data.size());
    return result(out, ZSTD_isError(size) == 0 ? size : limit);
}

base::Result<void> inflate(std::span<const std::byte> stream, std::span<std::byte> out) {
    static thread_local const Inflater inflater{libdeflate_alloc_decompressor()};
    std::size_t consumed = 0;
    std::size_t produced = 0;
    const auto result = libdeflate_deflate_decompress_ex(
        inflater.get(), stream.data(), stream.size(), out.data(), out.size(), &consumed, &produced);
    if (result != LIBDEFLATE_SUCCESS || produced != out.size())
        return base::fail(Errc::Corrupt, "a compressed cluster (zlib) is damaged");
    return {};
}

base::Result<std::size_t> unzlib(std::span<const std::byte> stream, std::span<std::byte> out) {
    static thread_local const Inflater inflater{libdeflate_alloc_decompressor()};
    std::size_t produced = 0;
    const auto done = libdeflate_zlib_decompress(inflater.get(), stream.data(), stream.size(),
                                                 out.data(), out.size(), &produced);
    if (done != LIBDEFLATE_SUCCESS)
        return base::fail(Errc::Corrupt, "a compressed cluster (zlib) is damaged");
    return produced;
}

base::Result<void> unzstd(std::span<const std::byte> stream, std::span<std::byte> out) {
    static thread_local const ZstdIn context{ZSTD_createDCtx()};
    ZSTD_DCtx_reset(context.get(), ZSTD_reset_session_only);
    ZSTD_inBuffer from{stream.data(), stream.size(), 0};
    ZSTD_outBuffer to{out.data(), out.size(), 0};
    while (to.pos < to.size) {
        const auto before = to.pos + from.pos;
        const auto result = ZSTD_decompressStream(context.get(), &to, &from);
        if (ZSTD_isError(result) != 0 || to.pos + from.pos == before)
            return base::fail(Errc::Corrupt, "a compressed cluster (zstd) is damaged");
    }
    return {};
}

} // namespace doppel::block::codec
