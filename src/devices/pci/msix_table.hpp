// SPDX-License-Identifier: Apache-2.0
#pragma once
/// MSI-X table and pending bits of one function (PCI Local Bus 3.0 §6.8.2). Part of PciDevice,
/// which locks.
#include <cstdint>
#include <optional>
#include <vector>

#include "bus/interrupt.hpp"
#include "bus/io_handler.hpp"
#include "state/schema.hpp"

namespace doppel::devices {

class MsixTable {
public:
    static constexpr unsigned kMaxVectors = 2048;
    static constexpr std::uint64_t kEntryBytes = 16;
    static constexpr bus::AccessRules kRules{4, 8, false};

    struct State {
        std::vector<std::uint32_t> entries; // four words each: address low, high, data, control
        std::vector<std::uint64_t> pending; // one bit per vector
        static constexpr auto kSchema =
            state::schema("msix-table", 1, state::field(1, "entries", &State::entries),
                          state::field(2, "pending", &State::pending));
    };

    explicit MsixTable(unsigned vectors = 0);
    unsigned vectors() const { return vectors_; }
    std::uint64_t table_bytes() const { return vectors_ * kEntryBytes; }
    std::uint64_t pending_bytes() const { return (std::uint64_t{vectors_} + 63) / 64 * 8; }
    void reset();

    std::uint64_t read_table(bus::IoAccess io) const;
    void write_table(bus::IoAccess io, std::uint64_t value);
    std::uint64_t read_pending(bus::IoAccess io) const;

    /// The message of `vector`, to be sent now; empty when it is masked, and pending from now on.
    std::optional<bus::MsiMessage> signal(unsigned vector, bool function_masked);
    /// Takes the message of one vector that is pending and no longer masked.
    std::optional<bus::MsiMessage> take_deliverable();

    const State& state() const { return state_; }
    base::Result<void> check(const State& state) const;
    void load(State state) { state_ = std::move(state); }

private:
    bool is_masked(unsigned vector) const;
    bus::MsiMessage message(unsigned vector) const;

    unsigned vectors_;
    State state_;
};

} // namespace doppel::devices
