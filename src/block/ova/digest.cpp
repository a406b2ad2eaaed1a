// SPDX-License-Identifier: Apache-2.0
#include "block/ova/digest.hpp"

#include <dlfcn.h>
#include <gnutls/crypto.h>

#include <algorithm>
#include <array>

#include <fmt/core.h>

#include "block/aligned_memory.hpp"

namespace doppel::block::ova {

namespace {

constexpr std::uint64_t kReadBytes = 1u << 20;

struct Library {
    decltype(&::gnutls_hash_init) init;
    decltype(&::gnutls_hash) add;
    decltype(&::gnutls_hash_deinit) end;
};

Result<Library> load() {
    static void* const library = ::dlopen("libgnutls.so.30", RTLD_NOW | RTLD_LOCAL);
    const auto find = [](const char* name) {
        return library == nullptr ? nullptr : ::dlsym(library, name);
    };
    const Library found{
        reinterpret_cast<decltype(&::gnutls_hash_init)>(find("gnutls_hash_init")),
        reinterpret_cast<decltype(&::gnutls_hash)>(find("gnutls_hash")),
        reinterpret_cast<decltype(&::gnutls_hash_deinit)>(find("gnutls_hash_deinit"))};
    if (found.init == nullptr || found.add == nullptr || found.end == nullptr)
        return base::fail(Errc::Unsupported, "digests want GnuTLS, which is not installed",
                          "Install libgnutls30.");
    return found;
}

struct Algorithm {
    std::string_view name;
    gnutls_digest_algorithm_t id;
    std::size_t bytes;
};
constexpr std::array kAlgorithms{
    Algorithm{"SHA1", GNUTLS_DIG_SHA1, 20}, Algorithm{"SHA256", GNUTLS_DIG_SHA256, 32},
    Algorithm{"SHA384", GNUTLS_DIG_SHA384, 48}, Algorithm{"SHA512", GNUTLS_DIG_SHA512, 64}};

/// Ends with its object.
class Hash {
public:
    explicit Hash(const Library& library) : library_{library} {}
    Hash(const Hash&) = delete;
    Hash& operator=(const Hash&) = delete;
    ~Hash() {
        std::array<std::byte, 64> unused{};
        if (handle_ != nullptr)
            library_.end(handle_, unused.data());
    }
    bool begin(gnutls_digest_algorithm_t id) { return library_.init(&handle_, id) == 0; }
    bool add(std::span<const std::byte> bytes) {
        return library_.add(handle_, bytes.data(), bytes.size()) == 0;
    }
    std::string end(std::size_t size) {
        std::array<std::byte, 64> sum{};
        library_.end(std::exchange(handle_, nullptr), sum.data());
        std::string text;
        for (const auto byte : std::span{sum}.first(size))
            text += fmt::format("{:02x}", static_cast<unsigned>(byte));
        return text;
    }

private:
    const Library& library_;
    gnutls_hash_hd_t handle_ = nullptr;
};

} // namespace

Task<std::string> digest_of(Node& file, std::string algorithm) {
    const auto known = std::ranges::find(kAlgorithms, algorithm, &Algorithm::name);
    if (known == kAlgorithms.end())
        co_return base::fail(Errc::Unsupported, fmt::format("the digest {} is unknown", algorithm));
    DOPPEL_CO_TRY(library, load());
    Hash hash{library};
    bool good = hash.begin(known->id);
    AlignedMemory bytes{std::min(file.size(), kReadBytes)};
    for (std::uint64_t at = 0; good && at < file.size();) {
        const auto part =
            bytes.span().first(std::min<std::uint64_t>(bytes.size(), file.size() - at));
        DOPPEL_AWAIT_VOID(file.read(at, IoBuffer{part}));
        good = hash.add(part);
        at += part.size();
    }
    if (!good)
        co_return base::fail(Errc::Unsupported,
                             fmt::format("GnuTLS refuses the digest {} here", algorithm));
    co_return hash.end(known->bytes);
}

} // namespace doppel::block::ova
