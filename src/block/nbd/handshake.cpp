// SPDX-License-Identifier: Apache-2.0
/// The server's side of the handshake ("Fixed newstyle negotiation").
#include <algorithm>

#include <fmt/core.h>

#include "block/io/alarm.hpp"
#include "block/nbd/session.hpp"

namespace doppel::block::nbd {

namespace {

constexpr std::uint32_t kMaxSkipped = 1u << 20;
constexpr unsigned kMaxOptions = 1000;
constexpr std::uint32_t kPreferredBytes = 4096;

std::vector<std::byte> bytes_of(std::string_view text) { return Writer{}.text(text).take(); }

/// Whether a query of LIST_META_CONTEXT ("base:", "qemu:dirty-bitmap:") or a full name means it.
bool selects(const std::string& query, const std::string& context, bool listing) {
    if (query == context)
        return true;
    return listing && query.ends_with(':') && context.starts_with(query);
}

} // namespace

Session::Session(Server& server, base::UniqueFd socket, std::string peer)
    : server_{server}, stream_{server.context(), std::move(socket), std::move(peer)} {}

void Session::reply(Option option, OptionReply type, std::vector<std::byte> data) {
    stream_.send(Writer{}
                     .put(OPTION_REPLY_MAGIC)
                     .put(static_cast<std::uint32_t>(option))
                     .put(static_cast<std::uint32_t>(type))
                     .put(static_cast<std::uint32_t>(data.size()))
                     .take());
    if (!data.empty())
        stream_.send(std::move(data));
}

void Session::refuse(Option option, OptionReply type, const std::string& why) {
    reply(option, type, bytes_of(why));
}

const Export* Session::find(const std::string& name) const {
    const auto& all = server_.exports();
    const auto found = std::ranges::find(all, name, &Export::name);
    return found == all.end() ? nullptr : &*found;
}

/// A client that connects and then says nothing must not keep others out.
Task<bool> Session::negotiate_in_time() {
    const auto limit = server_.options().handshake_limit;
    Alarm alarm{server_.context().loop(), [this, limit] {
                    stream_.fail({Errc::Io,
                                  0,
                                  fmt::format("its handshake takes more than {} s", limit.count()),
                                  {},
                                  {}});
                }};
    if (limit.count() > 0)
        alarm.set(limit);
    DOPPEL_AWAIT(chosen, negotiate());
    co_return chosen;
}

Task<bool> Session::negotiate() {
    stream_.send(
        Writer{}
            .put(NBDMAGIC)
            .put(IHAVEOPT)
            .put(static_cast<std::uint16_t>(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES))
            .take());
    std::array<std::byte, 4> flags{};
    DOPPEL_AWAIT_VOID(stream_.read(flags));
    const auto wanted = base::load_be<std::uint32_t>(flags.data());
    constexpr std::uint32_t kKnown = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    if ((wanted & ~kKnown) != 0)
        co_return base::fail(Errc::Corrupt, fmt::format("unknown client flags {:#x}", wanted));
    fixed_ = (wanted & handshake::FIXED_NEWSTYLE) != 0;
    no_zeroes_ = (wanted & handshake::NO_ZEROES) != 0;
    for (unsigned count = 0; count < kMaxOptions; ++count) {
        std::array<std::byte, 16> head{};
        DOPPEL_AWAIT_VOID(stream_.read(head));
        if (base::load_be<std::uint64_t>(head.data()) != IHAVEOPT)
            co_return base::fail(Errc::Corrupt, "an option without its magic number");
        const auto kind = static_cast<Option>(base::load_be<std::uint32_t>(head.data() + 8));
        const auto length = base::load_be<std::uint32_t>(head.data() + 12);
        if (length > kMaxOptionBytes) {
            if (length > kMaxSkipped)
                co_return base::fail(Errc::Corrupt, fmt::format("an option of {} bytes", length));
            DOPPEL_AWAIT_VOID(stream_.skip(length));
            refuse(kind, OptionReply::ERR_TOO_BIG, "the option is too long");
            continue;
        }
        std::vector<std::byte> data(length);
        DOPPEL_AWAIT_VOID(stream_.read(data));
        if (kind == Option::ABORT) {
            reply(kind, OptionReply::ACK);
            DOPPEL_AWAIT_VOID(stream_.sent_below(1));
            co_return false;
        }
        DOPPEL_AWAIT(chosen, option(kind, std::move(data)));
        DOPPEL_AWAIT_VOID(stream_.sent_below(kMaxSkipped)); // of a client that does not listen
        if (chosen)
            co_return true;
    }
    co_return base::fail(Errc::Corrupt, fmt::format("more than {} options", kMaxOptions));
}

/// Yields whether an export was chosen: transmission begins.
Task<bool> Session::option(Option option, std::vector<std::byte> data) {
    const bool locked = server_.options().tls != nullptr && !secure_;
    if (locked && option == Option::EXPORT_NAME)
        co_return base::fail(Errc::PermissionDenied, "the client does not use TLS");
    if (locked && option != Option::STARTTLS) {
        refuse(option, OptionReply::ERR_TLS_REQD, "this server wants TLS");
        co_return false;
    }
    switch (option) {
    case Option::EXPORT_NAME:
        if (!choose_old(data))
            co_return base::fail(Errc::NotFound, "the client asks for an export there is not");
        co_return true;
    case Option::LIST: list(data); break;
    case Option::STARTTLS: DOPPEL_AWAIT_VOID(start_tls(data)); break;
    case Option::INFO:
    case Option::GO: co_return go(option, data);
    case Option::STRUCTURED_REPLY:
        if (!data.empty()) {
            refuse(option, OptionReply::ERR_INVALID, "the option carries no data");
            break;
        }
        structured_ = true;
        reply(option, OptionReply::ACK);
        break;
    case Option::LIST_META_CONTEXT:
    case Option::SET_META_CONTEXT: contexts(option, data); break;
    default: refuse(option, OptionReply::ERR_UNSUP, "the option is unknown here"); break;
    }
    co_return false;
}

Task<void> Session::start_tls(std::span<const std::byte> data) {
    if (server_.options().tls == nullptr) {
        refuse(Option::STARTTLS, OptionReply::ERR_POLICY, "this server has no TLS");
        co_return {};
    }
    if (secure_ || !data.empty()) {
        refuse(Option::STARTTLS, OptionReply::ERR_INVALID, "TLS is on already, or data came along");
        co_return {};
    }
    reply(Option::STARTTLS, OptionReply::ACK);
    DOPPEL_CO_TRY(tls, server_.options().tls->session(stream_.fd(), {}));
    DOPPEL_AWAIT_VOID(stream_.secure(std::move(tls)));
    secure_ = true;
    structured_ = false; // what was agreed on in the clear does not count
    contexts_.clear();
    co_return {};
}

void Session::list(std::span<const std::byte> data) {
    if (!data.empty())
        return refuse(Option::LIST, OptionReply::ERR_INVALID, "the option carries no data");
    for (const auto& one : server_.exports())
        reply(Option::LIST, OptionReply::SERVER,
              Writer{}
                  .put(static_cast<std::uint32_t>(one.name.size()))
                  .text(one.name)
                  .text(one.description)
                  .take());
    reply(Option::LIST, OptionReply::ACK);
}

bool Session::choose_old(std::span<const std::byte> data) {
    export_ = find(Reader{data}.rest());
    if (export_ == nullptr)
        return false;
    stream_.send(Writer{}
                     .put(export_->node->size())
                     .put(export_->flags())
                     .zeroes(no_zeroes_ ? 0 : 124)
                     .take());
    if (contexts_of_ != export_)
        contexts_.clear();
    return true;
}

bool Session::go(Option option, std::span<const std::byte> data) {
    Reader reader{data};
    const auto name = reader.text(reader.get<std::uint32_t>());
    const auto count = reader.get<std::uint16_t>();
    if (!reader.ok() || reader.left() != count * sizeof(std::uint16_t)) {
        refuse(option, OptionReply::ERR_INVALID, "the lengths in the option do not fit");
        return false;
    }
    const auto* chosen = find(name);
    if (chosen == nullptr) {
        refuse(option, OptionReply::ERR_UNKNOWN, "there is no export of that name");
        return false;
    }
    send_infos(option, *chosen, reader);
    reply(option, OptionReply::ACK);
    if (option == Option::INFO)
        return false;
    export_ = chosen;
    if (contexts_of_ != export_)
        contexts_.clear();
    return true;
}

void Session::send_infos(Option option, const Export& chosen, Reader& wanted) {
    const auto info = [&](Info kind, std::vector<std::byte> data) {
        auto whole = Writer{}.put(static_cast<std::uint16_t>(kind)).take();
        whole.insert(whole.end(), data.begin(), data.end());
        reply(option, OptionReply::INFO, std::move(whole));
    };
    bool name = false;
    bool description = false;
    bool sizes = false;
    while (wanted.left() > 0) {
        const auto kind = static_cast<Info>(wanted.get<std::uint16_t>());
        name = name || kind == Info::NAME;
        description = description || kind == Info::DESCRIPTION;
        sizes = sizes || kind == Info::BLOCK_SIZE;
    }
    info(Info::EXPORT, Writer{}.put(chosen.node->size()).put(chosen.flags()).take());
    if (name)
        info(Info::NAME, bytes_of(chosen.name));
    if (description && !chosen.description.empty())
        info(Info::DESCRIPTION, bytes_of(chosen.description));
    if (sizes)
        info(Info::BLOCK_SIZE,
             Writer{}.put(std::uint32_t{1}).put(kPreferredBytes).put(kMaxPayload).take());
}

void Session::contexts(Option option, std::span<const std::byte> data) {
    const bool listing = option == Option::LIST_META_CONTEXT;
    if (!structured_)
        return refuse(option, OptionReply::ERR_INVALID, "structured replies come first");
    Reader reader{data};
    const auto* chosen = find(reader.text(reader.get<std::uint32_t>()));
    const auto count = reader.get<std::uint32_t>();
    std::vector<std::string> queries;
    for (std::uint32_t i = 0; i < count && reader.ok(); ++i)
        queries.push_back(reader.text(reader.get<std::uint32_t>()));
    if (!reader.complete())
        return refuse(option, OptionReply::ERR_INVALID, "the lengths in the option do not fit");
    if (!listing)
        contexts_.clear();
    if (chosen == nullptr)
        return refuse(option, OptionReply::ERR_UNKNOWN, "there is no export of that name");
    for (const auto& context : chosen->contexts()) {
        const bool wanted =
            (listing && queries.empty()) || std::ranges::any_of(queries, [&](const auto& query) {
                return selects(query, context.name, listing);
            });
        if (!wanted)
            continue;
        reply(option, OptionReply::META_CONTEXT,
              Writer{}.put(listing ? 0u : context.id).text(context.name).take());
        if (!listing)
            contexts_.push_back(context);
    }
    if (!listing)
        contexts_of_ = chosen;
    reply(option, OptionReply::ACK);
}

} // namespace doppel::block::nbd
