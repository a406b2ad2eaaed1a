// SPDX-License-Identifier: Apache-2.0
#include "block/crypto/luks_options.hpp"

#include <array>
#include <charconv>

#include <fmt/core.h>

namespace doppel::block::crypto {

namespace {

using enum OptionKind;

constexpr std::string_view kPrefix = "encrypt.";

constexpr std::array kEncryptCreate{
    OptionSpec{"encrypt.cipher-alg", Text, "aes-256", "aes-128, aes-192 (cbc only) or aes-256"},
    OptionSpec{"encrypt.cipher-mode", Text, "xts", "xts or cbc"},
    OptionSpec{"encrypt.hash-alg", Text, "sha256", "hash that makes keys of passphrases"},
    OptionSpec{"encrypt.iter-time", Number, "2000", "ms that trying a passphrase takes"},
    OptionSpec{"encrypt.ivgen-alg", Text, "plain64", "plain64, plain or essiv"},
    OptionSpec{"encrypt.ivgen-hash-alg", Text, "", "hash of essiv: sha256"},
    OptionSpec{"encrypt.key-secret", Text, "", "id of the --object secret with the passphrase"},
};

constexpr std::array kEncryptAmend{
    OptionSpec{"encrypt.force", Switch, "off", "replace a passphrase, or remove the last one"},
    OptionSpec{"encrypt.iter-time", Number, "2000", "ms that trying the new passphrase takes"},
    OptionSpec{"encrypt.keyslot", Number, "", "key slot to fill or to empty, 0 to 7"},
    OptionSpec{"encrypt.new-secret", Text, "", "id of the secret with the new passphrase"},
    OptionSpec{"encrypt.old-secret", Text, "", "id of the one to remove, or that opens it now"},
    OptionSpec{"encrypt.state", Text, "", "active: add a passphrase; inactive: remove one"},
};

template <std::size_t N>
constexpr std::array<OptionSpec, N> without_prefix(std::array<OptionSpec, N> specs) {
    for (auto& spec : specs)
        spec.name.remove_prefix(kPrefix.size());
    return specs;
}

constexpr auto kLuksCreate = without_prefix(kEncryptCreate);
constexpr auto kLuksAmend = without_prefix(kEncryptAmend);

std::unexpected<base::Error> wrong(std::string text, std::string hint = {}) {
    return base::fail(Errc::InvalidArgument, std::move(text), std::move(hint));
}

constexpr std::uint64_t kMaxMilliseconds = 600'000;

Result<std::chrono::milliseconds> read_time(const OptionReader& options, const std::string& name) {
    const auto time = DOPPEL_TRY(options.size(name));
    if (time == 0 || time > kMaxMilliseconds)
        return wrong(
            fmt::format("{} is {}, allowed are 1 to {} (ms)", name, time, kMaxMilliseconds));
    return std::chrono::milliseconds{time};
}

Result<CipherSpec> read_cipher(const OptionReader& options, const std::string& prefix) {
    const auto cipher = options.text(prefix + "cipher-alg");
    const auto mode = options.text(prefix + "cipher-mode");
    std::size_t key_bytes = cipher == "aes-128"   ? 16
                            : cipher == "aes-192" ? 24
                            : cipher == "aes-256" ? 32
                                                  : 0;
    if (key_bytes == 0)
        return wrong(fmt::format("{}cipher-alg '{}' is unknown", prefix, cipher),
                     "Use aes-128, aes-192 or aes-256.");
    if (mode != "xts" && mode != "cbc")
        return wrong(fmt::format("{}cipher-mode '{}' is unknown", prefix, mode), "Use xts or cbc.");
    const auto tweak = options.text(prefix + "ivgen-alg");
    const auto hash = options.text(prefix + "ivgen-hash-alg");
    if (!hash.empty() && (hash != "sha256" || tweak != "essiv"))
        return wrong(fmt::format("{}ivgen-hash-alg '{}' goes not with {}", prefix, hash, tweak),
                     "It is sha256, with essiv.");
    return CipherSpec::parse("aes", mode + "-" + (tweak == "essiv" ? "essiv:sha256" : tweak),
                             mode == "xts" ? key_bytes * 2 : key_bytes);
}

Result<std::optional<unsigned>> read_slot(const OptionReader& options, const std::string& name) {
    if (!options.given(name))
        return std::nullopt;
    const auto slot = DOPPEL_TRY(options.size(name));
    if (slot >= kKeySlots)
        return wrong(fmt::format("{} is {}, allowed are 0 to {}", name, slot, kKeySlots - 1));
    return static_cast<unsigned>(slot);
}

} // namespace

std::span<const OptionSpec> luks_create_options() { return kLuksCreate; }
std::span<const OptionSpec> encrypt_create_options() { return kEncryptCreate; }
std::span<const OptionSpec> luks_amend_options() { return kLuksAmend; }
std::span<const OptionSpec> encrypt_amend_options() { return kEncryptAmend; }
bool is_encrypt_option(std::string_view name) { return name.starts_with(kPrefix); }

Result<LuksOptions> read_luks_options(const OptionReader& options, const std::string& prefix) {
    LuksOptions luks;
    luks.cipher = DOPPEL_TRY(read_cipher(options, prefix));
    luks.hash = options.text(prefix + "hash-alg");
    DOPPEL_TRY(Hash::find(luks.hash));
    luks.time = DOPPEL_TRY(read_time(options, prefix + "iter-time"));
    return luks;
}

Result<Secret> find_secret(const OptionReader& options, const std::string& name,
                           const SecretSource* secrets) {
    const auto id = options.text(name);
    if (id.empty())
        return wrong(fmt::format("{} is missing", name),
                     "Name a secret: --object secret,id=ID,file=FILE.");
    if (secrets == nullptr)
        return wrong(fmt::format("{}: there are no secrets here", name));
    auto secret = DOPPEL_TRY(secrets->secret(id));
    if (secret.size() == 0)
        return wrong(fmt::format("secret '{}' is empty", id));
    return secret;
}

Result<KeyChange> read_key_change(const OptionReader& options, const std::string& prefix,
                                  const SecretSource* secrets) {
    KeyChange change;
    const auto state = options.text(prefix + "state");
    if (state != "active" && state != "inactive")
        return wrong(fmt::format("{}state is '{}'", prefix, state),
                     "Use active to add a passphrase, inactive to remove one.");
    change.kind = state == "active" ? KeyChange::Kind::Add : KeyChange::Kind::Remove;
    if (change.kind == KeyChange::Kind::Add)
        change.fresh = DOPPEL_TRY(find_secret(options, prefix + "new-secret", secrets));
    else if (options.given(prefix + "new-secret"))
        return wrong(fmt::format("{}new-secret goes not with state=inactive", prefix));
    if (options.given(prefix + "old-secret"))
        change.old = DOPPEL_TRY(find_secret(options, prefix + "old-secret", secrets));
    change.slot = DOPPEL_TRY(read_slot(options, prefix + "keyslot"));
    if (change.kind == KeyChange::Kind::Remove && !change.old && !change.slot)
        return wrong("which passphrase is to go?",
                     fmt::format("Give {0}old-secret or {0}keyslot.", prefix));
    change.time = DOPPEL_TRY(read_time(options, prefix + "iter-time"));
    change.force = DOPPEL_TRY(options.flag(prefix + "force"));
    return change;
}

} // namespace doppel::block::crypto
