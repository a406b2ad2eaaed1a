// SPDX-License-Identifier: Apache-2.0
#include "api/control.hpp"

#include <array>
#include <concepts>
#include <type_traits>
#include <utility>

#include <boost/json.hpp>
#include <fmt/core.h>

namespace doppel::api {

namespace json = boost::json;
using base::Errc;
using base::Error;
using base::Result;

namespace {

/// One list of members per message serves both directions.
template <typename Visit> void members(Visit&& visit, VmStatus& m) {
    visit("name", m.name);
    visit("state", m.state);
    visit("board", m.board);
    visit("engine", m.engine);
    visit("cpu_model", m.cpu_model);
    visit("cpus", m.cpus);
    visit("memory_bytes", m.memory_bytes);
    visit("pid", m.pid);
    visit("vm_time_ns", m.vm_time_ns);
    visit("forwards", m.forwards);
}
template <typename Visit> void members(Visit&& visit, VmStatistics& m) { visit("text", m.text); }
template <typename Visit> void members(Visit&& visit, SaveRequest& m) {
    visit("path", m.path);
    visit("keep_paused", m.keep_paused);
}
template <typename Visit> void members(Visit&& visit, Job& m) {
    visit("id", m.id);
    visit("kind", m.kind);
    visit("state", m.state);
    visit("done_bytes", m.done_bytes);
    visit("total_bytes", m.total_bytes);
    visit("error", m.error);
}

bool take(const json::value& from, std::string& to) {
    const auto* text = from.if_string();
    if (text != nullptr)
        to.assign(text->data(), text->size());
    return text != nullptr;
}
bool take(const json::value& from, bool& to) {
    const auto* value = from.if_bool();
    if (value != nullptr)
        to = *value;
    return value != nullptr;
}
bool take(const json::value& from, std::uint64_t& to) {
    json::error_code error;
    const auto value = from.to_number<std::uint64_t>(error);
    if (!error)
        to = value;
    return !error;
}
bool take(const json::value& from, std::vector<std::string>& to) {
    const auto* list = from.if_array();
    if (list == nullptr)
        return false;
    to.clear();
    for (const auto& element : *list)
        if (!take(element, to.emplace_back()))
            return false;
    return true;
}

void put(json::value& to, const std::vector<std::string>& list) {
    to = json::array(list.begin(), list.end());
}
template <typename T> void put(json::value& to, const T& value) { to = value; }

template <typename T> std::string encode(const T& message) {
    json::object object;
    auto copy = message;
    members([&](const char* name, const auto& member) { put(object[name], member); }, copy);
    return json::serialize(object) + "\n";
}

std::unexpected<Error> wrong(std::string_view what, std::string_view member) {
    return std::unexpected(Error{Errc::InvalidArgument,
                                 0,
                                 fmt::format("{} '{}' of the message", what, member),
                                 std::string{member},
                                 {}});
}

template <typename T> Result<T> decode(std::string_view text) {
    json::error_code error;
    const auto value = json::parse({text.data(), text.size()}, error);
    const auto* object = error ? nullptr : value.if_object();
    if (object == nullptr)
        return base::fail(Errc::InvalidArgument, "the message is not a JSON object");
    T message;
    Result<void> outcome{};
    std::size_t known = 0;
    members(
        [&](const char* name, auto& member) {
            const auto* found = object->if_contains(name);
            known += found != nullptr ? 1 : 0;
            if (outcome && found == nullptr)
                outcome = wrong("there is no member", name);
            else if (outcome && !take(*found, member))
                outcome = wrong("wrong type of member", name);
        },
        message);
    DOPPEL_TRY_VOID(outcome);
    if (known != object->size())
        return base::fail(Errc::InvalidArgument, "the message has members that are unknown here");
    return message;
}

struct Code {
    Errc code;
    const char* name;
    unsigned status;
};

constexpr std::array kCodes{
    Code{Errc::InvalidArgument, "invalid-argument", 400},
    Code{Errc::NotFound, "not-found", 404},
    Code{Errc::PermissionDenied, "permission-denied", 403},
    Code{Errc::AlreadyExists, "already-exists", 409},
    Code{Errc::Busy, "busy", 409},
    Code{Errc::Unsupported, "unsupported", 501},
    Code{Errc::NoSpace, "no-space", 507},
    Code{Errc::Io, "io", 500},
    Code{Errc::Interrupted, "interrupted", 409},
};
constexpr Code kOther{Errc::Internal, "internal", 500};

const Code& code_of(Errc code) {
    for (const auto& entry : kCodes)
        if (entry.code == code)
            return entry;
    return kOther;
}

} // namespace

std::string to_json(const VmStatus& status) { return encode(status); }
std::string to_json(const VmStatistics& statistics) { return encode(statistics); }
std::string to_json(const SaveRequest& request) { return encode(request); }
std::string to_json(const Job& job) { return encode(job); }
std::string to_json(const Error& error) {
    return json::serialize(
               json::object{{"code", code_of(error.code).name}, {"message", error.message()}}) +
           "\n";
}

template <> Result<VmStatus> from_json(std::string_view text) { return decode<VmStatus>(text); }
template <> Result<VmStatistics> from_json(std::string_view text) {
    return decode<VmStatistics>(text);
}
template <> Result<SaveRequest> from_json(std::string_view text) {
    return decode<SaveRequest>(text);
}
template <> Result<Job> from_json(std::string_view text) { return decode<Job>(text); }

Error error_from_json(std::string_view text) {
    json::error_code error;
    const auto value = json::parse({text.data(), text.size()}, error);
    const auto* object = error ? nullptr : value.if_object();
    std::string name;
    std::string message = "the VM gave no reason";
    if (object != nullptr) {
        if (const auto* member = object->if_contains("code"))
            take(*member, name);
        if (const auto* member = object->if_contains("message"))
            take(*member, message);
    }
    for (const auto& entry : kCodes)
        if (name == entry.name)
            return {entry.code, 0, message, {}, {}};
    return {kOther.code, 0, message, {}, {}};
}

unsigned http_status(Errc code) { return code_of(code).status; }

} // namespace doppel::api
