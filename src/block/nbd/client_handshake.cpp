// SPDX-License-Identifier: Apache-2.0
/// The client's side of the handshake.
#include <bit>

#include <fmt/core.h>

#include "base/printable.hpp"
#include "block/nbd/connection.hpp"

namespace doppel::block::nbd {

namespace {

constexpr std::uint64_t OLDSTYLE_MAGIC = 0x00420281861253;
constexpr unsigned kMaxAnswers = 1000; // to one option
constexpr std::size_t kOldPadding = 124;

std::string text_of(std::span<const std::byte> bytes) {
    return base::printable({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, 200);
}

const char* name_of(OptionReply reply) {
    switch (reply) {
    case OptionReply::ERR_UNSUP: return "not supported";
    case OptionReply::ERR_POLICY: return "forbidden";
    case OptionReply::ERR_INVALID: return "invalid";
    case OptionReply::ERR_PLATFORM: return "not supported on its platform";
    case OptionReply::ERR_TLS_REQD: return "it wants TLS";
    case OptionReply::ERR_UNKNOWN: return "it has no such export";
    case OptionReply::ERR_SHUTDOWN: return "it is going down";
    case OptionReply::ERR_BLOCK_SIZE_REQD: return "it wants to negotiate block sizes";
    case OptionReply::ERR_TOO_BIG: return "too long";
    default: return "refused";
    }
}

} // namespace

std::unexpected<Error> Connection::broken(const std::string& what) const {
    return base::fail(Errc::Corrupt,
                      fmt::format("{} breaks the NBD protocol: {}", stream_.peer(), what));
}

void Connection::send_option(Option option, std::vector<std::byte> data) {
    stream_.send(Writer{}
                     .put(IHAVEOPT)
                     .put(static_cast<std::uint32_t>(option))
                     .put(static_cast<std::uint32_t>(data.size()))
                     .take());
    if (!data.empty())
        stream_.send(std::move(data));
}

Task<Connection::OptionAnswer> Connection::option_answer(Option option) {
    std::array<std::byte, 20> head{};
    DOPPEL_AWAIT_VOID(stream_.read(head));
    Reader reader{head};
    const auto magic = reader.get<std::uint64_t>();
    const auto what = reader.get<std::uint32_t>();
    OptionAnswer answer;
    answer.type = static_cast<OptionReply>(reader.get<std::uint32_t>());
    const auto length = reader.get<std::uint32_t>();
    if (magic != OPTION_REPLY_MAGIC || what != static_cast<std::uint32_t>(option))
        co_return broken("it answers what was not asked");
    if (length > kMaxOptionBytes)
        co_return broken(fmt::format("an answer of {} bytes to an option", length));
    answer.data.resize(length);
    DOPPEL_AWAIT_VOID(stream_.read(answer.data));
    co_return answer;
}

Task<void> Connection::greet() {
    DOPPEL_CO_TRY_VOID(stream_.start());
    std::array<std::byte, 16> magic{};
    DOPPEL_AWAIT_VOID(stream_.read(magic));
    Reader reader{magic};
    if (reader.get<std::uint64_t>() != NBDMAGIC)
        co_return base::fail(Errc::Corrupt, fmt::format("{} is no NBD server", stream_.peer()));
    const auto style = reader.get<std::uint64_t>();
    if (style == OLDSTYLE_MAGIC)
        co_return base::fail(Errc::Unsupported,
                             fmt::format("{} speaks the old style of NBD", stream_.peer()),
                             "Start the server in newstyle mode.");
    if (style != IHAVEOPT)
        co_return broken("its greeting is unknown");
    std::array<std::byte, 2> flags{};
    DOPPEL_AWAIT_VOID(stream_.read(flags));
    const auto offered = base::load_be<std::uint16_t>(flags.data());
    fixed_ = (offered & handshake::FIXED_NEWSTYLE) != 0;
    no_zeroes_ = (offered & handshake::NO_ZEROES) != 0;
    stream_.send(Writer{}
                     .put(static_cast<std::uint32_t>(
                         offered & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES)))
                     .take());
    co_return {};
}

Task<void> Connection::start_tls(TlsCredentials& tls, std::string host) {
    if (!fixed_)
        co_return base::fail(Errc::Unsupported, fmt::format("{} has no TLS", stream_.peer()));
    send_option(Option::STARTTLS, {});
    DOPPEL_AWAIT(answer, option_answer(Option::STARTTLS));
    if (answer.type != OptionReply::ACK)
        co_return base::fail(Errc::Unsupported,
                             fmt::format("{} has no TLS: {}", stream_.peer(), name_of(answer.type)),
                             "Use nbd:// or nbd+unix:// if the way there is safe.");
    DOPPEL_CO_TRY(session, tls.session(stream_.fd(), host));
    DOPPEL_AWAIT_VOID(stream_.secure(std::move(session)));
    co_return {};
}

Task<void> Connection::ask_for_structure() {
    send_option(Option::STRUCTURED_REPLY, {});
    DOPPEL_AWAIT(answer, option_answer(Option::STRUCTURED_REPLY));
    if (answer.type == OptionReply::ERR_TLS_REQD)
        co_return base::fail(Errc::PermissionDenied, fmt::format("{} wants TLS", stream_.peer()),
                             "Use nbds:// or nbds+unix:// with tls-certificates or tls-psk-file.");
    if (answer.type != OptionReply::ACK && !is_error(answer.type))
        co_return broken("its answer to STRUCTURED_REPLY");
    facts_.structured = answer.type == OptionReply::ACK;
    co_return {};
}

Task<void> Connection::ask_for_allocation(std::string export_name) {
    send_option(Option::SET_META_CONTEXT,
                Writer{}
                    .put(static_cast<std::uint32_t>(export_name.size()))
                    .text(export_name)
                    .put(std::uint32_t{1})
                    .put(static_cast<std::uint32_t>(kBaseAllocation.size()))
                    .text(kBaseAllocation)
                    .take());
    for (unsigned i = 0; i < kMaxAnswers; ++i) {
        DOPPEL_AWAIT(answer, option_answer(Option::SET_META_CONTEXT));
        if (answer.type == OptionReply::ACK)
            co_return {};
        if (is_error(answer.type)) {
            facts_.allocation.reset();
            co_return {};
        }
        Reader reader{answer.data};
        const auto id = reader.get<std::uint32_t>();
        if (answer.type != OptionReply::META_CONTEXT || !reader.ok() ||
            reader.rest() != kBaseAllocation || facts_.allocation)
            co_return broken("its answer to SET_META_CONTEXT");
        facts_.allocation = id;
    }
    co_return broken("its answer to SET_META_CONTEXT has no end");
}

Result<void> Connection::take_info(std::span<const std::byte> data) {
    Reader reader{data};
    const auto kind = static_cast<Info>(reader.get<std::uint16_t>());
    if (kind == Info::EXPORT) {
        facts_.size_bytes = reader.get<std::uint64_t>();
        facts_.flags = reader.get<std::uint16_t>();
        got_export_ = true;
        return reader.complete() ? Result<void>{} : broken("its facts about the export");
    }
    if (kind != Info::BLOCK_SIZE)
        return {};
    facts_.min_block = reader.get<std::uint32_t>();
    reader.get<std::uint32_t>(); // preferred
    const auto most = reader.get<std::uint32_t>();
    if (!reader.complete() || !std::has_single_bit(facts_.min_block) ||
        facts_.min_block > (64u << 10) || most < facts_.min_block)
        return broken(fmt::format("blocks of {} to {} bytes", facts_.min_block, most));
    facts_.max_block = std::min(most, kMaxPayload) & ~(facts_.min_block - 1);
    return {};
}

Task<void> Connection::go(std::string export_name) {
    send_option(Option::GO, Writer{}
                                .put(static_cast<std::uint32_t>(export_name.size()))
                                .text(export_name)
                                .put(std::uint16_t{1})
                                .put(static_cast<std::uint16_t>(Info::BLOCK_SIZE))
                                .take());
    for (unsigned i = 0; i < kMaxAnswers; ++i) {
        DOPPEL_AWAIT(answer, option_answer(Option::GO));
        if (answer.type == OptionReply::ACK && got_export_)
            co_return {};
        if (answer.type == OptionReply::ERR_UNSUP) {
            DOPPEL_AWAIT_VOID(choose_old(std::move(export_name)));
            co_return {};
        }
        if (is_error(answer.type))
            co_return base::fail(
                answer.type == OptionReply::ERR_UNKNOWN ? Errc::NotFound : Errc::PermissionDenied,
                fmt::format("{} refuses the export '{}': {} ({})", stream_.peer(), export_name,
                            name_of(answer.type), text_of(answer.data)));
        if (answer.type != OptionReply::INFO)
            co_return broken("its answer to GO");
        DOPPEL_CO_TRY_VOID(take_info(answer.data));
    }
    co_return broken("its answer to GO has no end");
}

Task<void> Connection::choose_old(std::string export_name) {
    send_option(Option::EXPORT_NAME, Writer{}.text(export_name).take());
    std::array<std::byte, 10> facts{};
    auto task = stream_.read(facts);
    auto result = co_await task;
    if (!result)
        co_return base::fail(Errc::NotFound, fmt::format("{} has no export '{}', or wants TLS",
                                                         stream_.peer(), export_name));
    Reader reader{facts};
    facts_.size_bytes = reader.get<std::uint64_t>();
    facts_.flags = reader.get<std::uint16_t>();
    if (!no_zeroes_)
        DOPPEL_AWAIT_VOID(stream_.skip(kOldPadding));
    co_return {};
}

Task<void> Connection::agree(std::string export_name, TlsCredentials* tls, std::string tls_host) {
    DOPPEL_AWAIT_VOID(greet());
    if (tls != nullptr)
        DOPPEL_AWAIT_VOID(start_tls(*tls, std::move(tls_host)));
    if (!fixed_) {
        DOPPEL_AWAIT_VOID(choose_old(std::move(export_name)));
    } else {
        DOPPEL_AWAIT_VOID(ask_for_structure());
        if (facts_.structured)
            DOPPEL_AWAIT_VOID(ask_for_allocation(export_name));
        DOPPEL_AWAIT_VOID(go(std::move(export_name)));
    }
    co_return {};
}

Task<ExportFacts> Connection::negotiate(std::string export_name, TlsCredentials* tls,
                                        std::string tls_host) {
    negotiating_ = true;
    watch();
    auto agreeing = agree(std::move(export_name), tls, std::move(tls_host));
    auto agreed = co_await agreeing;
    negotiating_ = false;
    if (!agreed)
        co_return std::unexpected(std::move(agreed).error());
    if (facts_.size_bytes > INT64_MAX)
        co_return broken(fmt::format("an export of {} bytes", facts_.size_bytes));
    receiver_.emplace(receive_answers());
    co_return facts_;
}

} // namespace doppel::block::nbd
