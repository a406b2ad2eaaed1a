// SPDX-License-Identifier: Apache-2.0
#include "api/machine_json.hpp"

#include <algorithm>
#include <concepts>
#include <vector>

#include <boost/json.hpp>
#include <fmt/core.h>

namespace doppel::api {

namespace json = boost::json;
using base::Errc;
using base::Error;
using base::Result;
using description::Machine;

namespace {

std::unexpected<Error> wrong(std::string path, std::string_view expected) {
    return std::unexpected(Error{
        Errc::InvalidArgument, 0, fmt::format("member '{}' must be {}", path, expected), path, {}});
}

Result<void> take(const json::value& from, const std::string& path, std::string& to) {
    const auto* text = from.if_string();
    if (text == nullptr)
        return wrong(path, "a string");
    to = std::string{text->data(), text->size()};
    return {};
}

Result<void> take(const json::value& from, const std::string& path, bool& to) {
    const auto* value = from.if_bool();
    if (value == nullptr)
        return wrong(path, "true or false");
    to = *value;
    return {};
}

template <std::unsigned_integral T>
    requires(!std::same_as<T, bool>)
Result<void> take(const json::value& from, const std::string& path, T& to) {
    json::error_code error;
    const auto value = from.to_number<T>(error);
    if (error)
        return wrong(path, "a whole number in its range");
    to = value;
    return {};
}

Result<void> take(const json::value& from, const std::string& path,
                  std::optional<std::uint16_t>& to) {
    if (from.is_null()) {
        to.reset();
        return {};
    }
    return take(from, path, to.emplace());
}

Result<void> take(const json::value& from, const std::string& path, std::vector<std::string>& to) {
    const auto* list = from.if_array();
    if (list == nullptr)
        return wrong(path, "a list of strings");
    to.clear();
    for (const auto& element : *list)
        DOPPEL_TRY_VOID(take(element, path, to.emplace_back()));
    return {};
}

Result<void> take(const json::value& from, const std::string& path, description::Options& to) {
    const auto* object = from.if_object();
    if (object == nullptr)
        return wrong(path, "an object of strings");
    to.clear();
    for (const auto& [key, value] : *object) {
        const std::string name{key.data(), key.size()};
        DOPPEL_TRY_VOID(take(value, path + "." + name, to[name]));
    }
    return {};
}

Result<void> take(const json::value& from, const std::string& path, description::Engine& to) {
    std::string name;
    DOPPEL_TRY_VOID(take(from, path, name));
    const auto engine = description::parse_engine(name);
    if (!engine)
        return wrong(path, "auto, kvm, translator or interpreter");
    to = *engine;
    return {};
}

Result<void> take(const json::value& from, const std::string& path, description::TimeMode& to) {
    std::string name;
    DOPPEL_TRY_VOID(take(from, path, name));
    const auto mode = description::parse_time_mode(name);
    if (!mode)
        return wrong(path, "real or virtual");
    to = *mode;
    return {};
}

Result<void> take(const json::value& from, const std::string& path, description::ConsoleKind& to) {
    std::string name;
    DOPPEL_TRY_VOID(take(from, path, name));
    const auto kind = description::parse_console_kind(name);
    if (!kind)
        return wrong(path, "stdio, pty, file, socket or none");
    to = *kind;
    return {};
}

Result<void> take(const json::value& from, const std::string& path, description::NetKind& to) {
    std::string name;
    DOPPEL_TRY_VOID(take(from, path, name));
    const auto kind = description::parse_net_kind(name);
    if (!kind)
        return wrong(path, "user");
    to = *kind;
    return {};
}

json::value give(const std::string& value) { return json::value(value); }
json::value give(bool value) { return json::value(value); }
json::value give(std::uint64_t value) { return json::value(value); }
json::value give(std::uint32_t value) { return json::value(value); }
json::value give(const std::optional<std::uint16_t>& value) {
    return value ? json::value(*value) : json::value(nullptr);
}
json::value give(const std::vector<std::string>& value) {
    return json::array(value.begin(), value.end());
}
json::value give(const description::Options& value) {
    json::object object;
    for (const auto& [name, text] : value)
        object[name] = text;
    return object;
}
json::value give(description::Engine value) { return json::value(description::engine_name(value)); }
json::value give(description::TimeMode value) {
    return json::value(description::time_mode_name(value));
}
json::value give(description::ConsoleKind value) {
    return json::value(description::console_kind_name(value));
}

json::value give(description::NetKind value) {
    return json::value(description::net_kind_name(value));
}

/// One list of members per struct serves both directions.
template <typename Visit> void members(Visit& visit, description::Boot& boot) {
    visit("kernel", boot.kernel);
    visit("initrd", boot.initrd);
    visit("command_line", boot.command_line);
    visit("modules", boot.modules);
}
template <typename Visit> void members(Visit& visit, description::Console& console) {
    visit("kind", console.kind);
    visit("path", console.path);
}
template <typename Visit> void members(Visit& visit, description::Disk& disk) {
    visit("path", disk.path);
    visit("format", disk.format);
    visit("read_only", disk.read_only);
    visit("serial", disk.serial);
    visit("cache", disk.cache);
    visit("address", disk.address);
    visit("options", disk.options);
    visit("limits", disk.limits);
}
template <typename Visit> void members(Visit& visit, description::Secret& secret) {
    visit("id", secret.id);
    visit("file", secret.file);
    visit("format", secret.format);
}
template <typename Visit> void members(Visit& visit, description::Net& net) {
    visit("kind", net.kind);
    visit("mac", net.mac);
    visit("address", net.address);
    visit("mtu", net.mtu);
    visit("subnet", net.subnet);
    visit("ipv6", net.ipv6);
    visit("restricted", net.restricted);
    visit("hostname", net.hostname);
    visit("forwards", net.forwards);
}
template <typename Visit> void members(Visit& visit, description::Rng& rng) {
    visit("present", rng.present);
    visit("address", rng.address);
}
template <typename Visit> void members(Visit& visit, description::VirtioConsole& console) {
    visit("present", console.present);
    visit("address", console.address);
    visit("console", console.console);
}
template <typename Visit> void members(Visit& visit, description::Tuning& tuning) {
    for (const auto& [name, member] : description::kTuningNames)
        visit(name, tuning.*member);
    visit("direct_always", tuning.direct_always);
    visit("loop_threshold", tuning.loop_threshold);
    visit("busy_calls", tuning.busy_calls);
}
template <typename Visit> void members(Visit& visit, description::Translation& translation) {
    visit("tuning", translation.tuning);
    visit("jit_dump", translation.jit_dump);
    visit("chaos", translation.chaos);
    visit("cache_mib", translation.cache_mib);
}
template <typename Visit> void members(Visit& visit, description::Profiling& profiling) {
    visit("path", profiling.path);
    visit("symbols", profiling.symbols);
}
template <typename Visit> void members(Visit& visit, Machine& machine) {
    visit("board", machine.board);
    visit("name", machine.name);
    visit("memory_bytes", machine.memory_bytes);
    visit("cpus", machine.cpus);
    visit("cpu_model", machine.cpu_model);
    visit("engine", machine.engine);
    visit("time", machine.time);
    visit("translation", machine.translation);
    visit("boot", machine.boot);
    visit("console", machine.console);
    visit("secrets", machine.secrets);
    visit("disks", machine.disks);
    visit("nets", machine.nets);
    visit("rng", machine.rng);
    visit("virtio_console", machine.virtio_console);
    visit("debug_exit_port", machine.debug_exit_port);
    visit("reboot", machine.reboot);
    visit("checking", machine.checking);
    visit("stats", machine.stats);
    visit("profiling", machine.profiling);
}

template <typename T>
concept Group = std::same_as<T, description::Boot> || std::same_as<T, description::Console> ||
                std::same_as<T, description::Disk> || std::same_as<T, description::Secret> ||
                std::same_as<T, description::Net> || std::same_as<T, description::Rng> ||
                std::same_as<T, description::VirtioConsole> ||
                std::same_as<T, description::Tuning> || std::same_as<T, description::Translation> ||
                std::same_as<T, description::Profiling> || std::same_as<T, Machine>;
template <typename T> struct IsGroupList : std::false_type {};
template <Group T> struct IsGroupList<std::vector<T>> : std::true_type {};
template <typename T>
concept GroupList = IsGroupList<T>::value;

template <Group T> json::object to_object(T& group);

template <GroupList T> json::array to_list(T& list) {
    json::array array;
    for (auto& group : list)
        array.push_back(to_object(group));
    return array;
}

template <Group T> json::object to_object(T& group) {
    json::object object;
    auto visit = [&](const char* name, auto& member) {
        if constexpr (Group<std::remove_reference_t<decltype(member)>>)
            object[name] = to_object(member);
        else if constexpr (GroupList<std::remove_reference_t<decltype(member)>>)
            object[name] = to_list(member);
        else
            object[name] = give(member);
    };
    members(visit, group);
    return object;
}

template <Group T>
Result<void> from_object(const json::value& value, const std::string& path, T& group);

template <GroupList T>
Result<void> from_list(const json::value& value, const std::string& path, T& list) {
    const auto* array = value.if_array();
    if (array == nullptr)
        return wrong(path, "a list of objects");
    list.clear();
    for (const auto& element : *array) {
        const auto place = fmt::format("{}[{}]", path, list.size());
        DOPPEL_TRY_VOID(from_object(element, place, list.emplace_back()));
    }
    return {};
}

template <Group T>
Result<void> from_object(const json::value& value, const std::string& path, T& group) {
    const auto* object = value.if_object();
    if (object == nullptr)
        return wrong(path.empty() ? "(the whole)" : path, "an object");
    Result<void> outcome{};
    std::size_t known = 0;
    std::vector<std::string_view> names;
    auto visit = [&](const char* name, auto& member) {
        names.push_back(name);
        const auto* found = object->if_contains(name);
        if (found == nullptr || !outcome)
            return;
        ++known;
        const auto inner = path.empty() ? std::string{name} : path + "." + name;
        if constexpr (Group<std::remove_reference_t<decltype(member)>>)
            outcome = from_object(*found, inner, member);
        else if constexpr (GroupList<std::remove_reference_t<decltype(member)>>)
            outcome = from_list(*found, inner, member);
        else
            outcome = take(*found, inner, member);
    };
    members(visit, group);
    if (!outcome || known == object->size())
        return outcome;
    for (const auto& [key, unused] : *object)
        if (std::ranges::find(names, std::string_view{key.data(), key.size()}) == names.end())
            return base::fail(
                Errc::InvalidArgument,
                fmt::format("member '{}' is unknown", (path.empty() ? "" : path + ".") +
                                                          std::string{key.data(), key.size()}));
    return outcome;
}

/// Boost.JSON prints on one line; people read this.
void print(std::string& out, const json::value& value, std::size_t depth) {
    const std::string indent((depth + 1) * 2, ' ');
    if (const auto* list = value.if_array();
        list != nullptr && !list->empty() && list->front().is_object()) {
        const char* comma = "[\n";
        for (const auto& element : *list) {
            out += comma + indent;
            print(out, element, depth + 1);
            comma = ",\n";
        }
        out += "\n" + std::string(depth * 2, ' ') + "]";
        return;
    }
    const auto* object = value.if_object();
    if (object == nullptr) {
        out += json::serialize(value);
        return;
    }
    out += "{";
    const char* separator = "\n";
    for (const auto& [key, member] : *object) {
        out += separator + indent + json::serialize(json::string{key}) + ": ";
        print(out, member, depth + 1);
        separator = ",\n";
    }
    out += "\n" + std::string(depth * 2, ' ') + "}";
}

} // namespace

std::string machine_to_json(const Machine& machine) {
    auto copy = machine;
    std::string out;
    print(out, to_object(copy), 0);
    return out + "\n";
}

Result<Machine> machine_from_json(std::string_view text) {
    json::error_code error;
    const auto value = json::parse({text.data(), text.size()}, error);
    if (error)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("the machine description is not JSON: {}", error.message()));
    Machine machine;
    DOPPEL_TRY_VOID(from_object(value, "", machine));
    DOPPEL_TRY_VOID(description::assign_addresses(machine));
    DOPPEL_TRY_VOID(description::validate(machine));
    return machine;
}

} // namespace doppel::api
