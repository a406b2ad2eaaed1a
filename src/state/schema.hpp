// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Numbered fields: how a plain `struct State` becomes bytes and comes back.
///
///     static constexpr auto kSchema =
///         schema("cmos-rtc", 1, field(1, "index", &State::index), field(2, "ram", &State::ram));
///
/// A field number is never reused. A field that came later says since which version (`since`), and
/// is left at its default when an older state is read. Unknown numbers are an error unless the
/// writer marked them optional. After decoding, `State::validate()` runs when there is one.
/// Members may be unsigned integers, bool, enums, std::array and std::vector of those, structs with
/// a kSchema of their own, and std::array of such structs. Owner thread only.
#include <array>
#include <concepts>
#include <cstdint>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "state/codec.hpp"

namespace doppel::state {

enum class Presence : std::uint8_t { Required, Optional };

template <typename S, typename M> struct Field {
    std::uint16_t id;
    std::string_view name;
    M S::* member;
    std::uint32_t since;
    Presence presence;
};

template <typename S, typename M>
constexpr Field<S, M> field(std::uint16_t id, std::string_view name, M S::* member,
                            std::uint32_t since = 1, Presence presence = Presence::Required) {
    return {id, name, member, since, presence};
}

template <typename S, typename... M> struct Schema {
    std::string_view kind;
    std::uint32_t version;
    std::tuple<Field<S, M>...> fields;
};

template <typename S, typename... M>
constexpr Schema<S, M...> schema(std::string_view kind, std::uint32_t version,
                                 Field<S, M>... fields) {
    return {kind, version, std::tuple{fields...}};
}

/// No vector in a saved state is longer (elements); a hostile length must not become an allocation.
inline constexpr std::size_t kMaxVectorElements = 1u << 24;

namespace detail {

template <typename T>
concept Scalar = std::unsigned_integral<T> || std::is_enum_v<T>;
template <typename T>
concept Struct = requires { T::kSchema; };
template <typename T> struct ArrayTraits : std::false_type {};
template <typename T, std::size_t N> struct ArrayTraits<std::array<T, N>> : std::true_type {};
template <typename T>
concept Array = ArrayTraits<T>::value;
template <typename T> struct VectorTraits : std::false_type {};
template <typename T> struct VectorTraits<std::vector<T>> : std::true_type {};
template <typename T>
concept Vector = VectorTraits<T>::value;

template <Scalar T> constexpr auto to_wire(T value) {
    if constexpr (std::same_as<T, bool>)
        return static_cast<std::uint8_t>(value);
    else if constexpr (std::is_enum_v<T>)
        return static_cast<std::make_unsigned_t<std::underlying_type_t<T>>>(value);
    else
        return value;
}

std::unexpected<base::Error> field_error(std::string_view kind, std::string_view name,
                                         base::Error error);
std::unexpected<base::Error> corrupt(std::string_view what);
base::Result<void> expect_kind(Decoder& from, std::string_view kind, std::uint32_t version,
                               std::uint32_t& stored_version);

} // namespace detail

template <typename S, typename... M>
void encode(Encoder& to, const Schema<S, M...>& schema, const S& state);
template <typename S, typename... M>
base::Result<void> decode(Decoder& from, const Schema<S, M...>& schema, S& state);

namespace detail {

template <typename T> void encode_value(Encoder& to, const T& value) {
    if constexpr (Scalar<T>) {
        to.integer(to_wire(value));
    } else if constexpr (Struct<T>) {
        const auto position = to.begin_length();
        encode(to, T::kSchema, value);
        to.end_length(position);
    } else if constexpr (std::same_as<T, std::string>) {
        to.integer(static_cast<std::uint32_t>(value.size()));
        to.raw(std::as_bytes(std::span{value}));
    } else {
        static_assert(Array<T> || Vector<T>, "no encoding for this member type");
        if constexpr (Vector<T>)
            to.integer(static_cast<std::uint32_t>(value.size()));
        for (const auto& element : value)
            encode_value(to, element);
    }
}

template <typename T> base::Result<void> decode_value(Decoder& from, T& value);

template <typename T> base::Result<void> decode_vector(Decoder& from, T& value) {
    const auto count = DOPPEL_TRY(from.integer<std::uint32_t>());
    if (count > kMaxVectorElements || count > from.remaining())
        return corrupt("list is longer than its field");
    value.clear();
    for (std::uint32_t i = 0; i < count; ++i) {
        typename T::value_type element{};
        DOPPEL_TRY_VOID(decode_value(from, element));
        value.push_back(std::move(element));
    }
    return {};
}

base::Result<void> decode_string(Decoder& from, std::string& value);

template <typename T> base::Result<void> decode_value(Decoder& from, T& value) {
    if constexpr (Scalar<T>) {
        const auto wire = DOPPEL_TRY(from.integer<decltype(to_wire(T{}))>());
        if constexpr (std::same_as<T, bool>) {
            if (wire > 1)
                return corrupt("a yes/no value is neither 0 nor 1");
        }
        value = static_cast<T>(wire);
        return {};
    } else if constexpr (Struct<T>) {
        auto inner = DOPPEL_TRY(from.confined());
        return decode(inner, T::kSchema, value);
    } else if constexpr (std::same_as<T, std::string>) {
        return decode_string(from, value);
    } else if constexpr (Array<T>) {
        for (auto& element : value)
            DOPPEL_TRY_VOID(decode_value(from, element));
        return {};
    } else {
        return decode_vector(from, value);
    }
}

template <typename S, typename M>
base::Result<bool> decode_field(Decoder& from, const Field<S, M>& field, std::uint16_t id,
                                S& state) {
    if (field.id != id)
        return false;
    DOPPEL_TRY_VOID(decode_value(from, state.*field.member));
    if (from.remaining() != 0)
        return corrupt("field is longer than its type");
    return true;
}

} // namespace detail

/// Wire form: kind, u32 version, u32 field count, then per field u16 id, u16 optional flag,
/// u32 length, value.
template <typename S, typename... M>
void encode(Encoder& to, const Schema<S, M...>& schema, const S& state) {
    to.text(schema.kind);
    to.integer(schema.version);
    to.integer(static_cast<std::uint32_t>(sizeof...(M)));
    std::apply(
        [&](const auto&... field) {
            [[maybe_unused]] const auto one = [&](const auto& f) { // a state may be empty
                to.integer(f.id);
                to.integer(static_cast<std::uint16_t>(f.presence == Presence::Optional));
                const auto position = to.begin_length();
                detail::encode_value(to, state.*f.member);
                to.end_length(position);
            };
            (one(field), ...);
        },
        schema.fields);
}

/// `state` is unspecified after an error: decode into a fresh one and assign.
template <typename S, typename... M>
base::Result<void> decode(Decoder& from, const Schema<S, M...>& schema, S& state) {
    std::uint32_t stored_version = 0;
    DOPPEL_TRY_VOID(detail::expect_kind(from, schema.kind, schema.version, stored_version));
    const auto count = DOPPEL_TRY(from.integer<std::uint32_t>());
    std::array<bool, sizeof...(M)> seen{};
    for (std::uint32_t i = 0; i < count; ++i) {
        const auto id = DOPPEL_TRY(from.integer<std::uint16_t>());
        const auto optional = DOPPEL_TRY(from.integer<std::uint16_t>());
        auto value = DOPPEL_TRY(from.confined());
        base::Result<void> outcome{};
        bool known = false;
        [[maybe_unused]] const auto try_field = [&](std::size_t index, const auto& field) {
            if (known || !outcome || field.id != id)
                return;
            known = true;
            if (seen[index])
                outcome = detail::corrupt("field appears twice");
            else if (auto done = detail::decode_field(value, field, id, state); !done)
                outcome = detail::field_error(schema.kind, field.name, std::move(done).error());
            seen[index] = true;
        };
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (try_field(I, std::get<I>(schema.fields)), ...);
        }(std::make_index_sequence<sizeof...(M)>{});
        DOPPEL_TRY_VOID(outcome);
        if (!known && optional == 0)
            return detail::corrupt("field number is unknown to this version");
    }
    std::string_view missing;
    [[maybe_unused]] const auto check_present = [&](std::size_t index, const auto& field) {
        if (!seen[index] && field.since <= stored_version && field.presence == Presence::Required)
            missing = field.name;
    };
    [&]<std::size_t... I>(std::index_sequence<I...>) {
        (check_present(I, std::get<I>(schema.fields)), ...);
    }(std::make_index_sequence<sizeof...(M)>{});
    if (!missing.empty())
        return detail::field_error(schema.kind, missing,
                                   base::Error{base::Errc::Corrupt, 0, "field is missing", {}, {}});
    if constexpr (requires { state.validate(); })
        DOPPEL_TRY_VOID(state.validate());
    return {};
}

/// Anything whose state can be saved: devices, interrupt controllers, vCPUs.
class Savable {
public:
    virtual ~Savable() = default;
    virtual std::string_view state_kind() const = 0;
    virtual void save(Encoder& to) const = 0;
    /// All or nothing: after an error the old state stands.
    virtual base::Result<void> load(Decoder& from) = 0;
};

} // namespace doppel::state
