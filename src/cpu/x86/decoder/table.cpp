// SPDX-License-Identifier: Apache-2.0
#include "cpu/x86/decoder/table.hpp"

#include "cpu/x86/decoder/rows_integer.hpp"
#include "cpu/x86/decoder/rows_system.hpp"
#include "cpu/x86/decoder/rows_vector.hpp"
#include "cpu/x86/decoder/table_builder.hpp"

namespace doppel::cpu::x86::decoder {
namespace {

constexpr std::size_t kMaxRows = 1900;
constexpr std::size_t kMaxRowsPerOpcode = 64;
constexpr std::uint16_t kEnd = 0xffff;

struct Changes {
    Op op = Op::Invalid;
    unsigned opcode = 0; // added
    int reg = -1;
    std::string_view traits = "";
};

consteval std::array<std::array<std::uint16_t, 256>, 8> no_heads() {
    std::array<std::array<std::uint16_t, 256>, 8> heads{};
    for (auto& map : heads)
        map.fill(kEnd);
    return heads;
}

class Builder {
public:
    template <std::size_t N> consteval void add_rows(const Row (&rows)[N], bool vex) {
        for (const Row& row : rows)
            add_row(row, vex, {});
    }

    consteval void add_row(const Row& row, bool vex, const Changes& changes) {
        std::string_view encoding = row.encoding;
        std::string_view opcodes = next_word(encoding);
        unsigned map = 0;
        if (const auto dot = opcodes.find('.'); dot != std::string_view::npos) {
            const auto name = opcodes.substr(0, dot);
            map = name == "0F" ? 1 : name == "0F38" ? 2 : 3;
            opcodes.remove_prefix(dot + 1);
        }
        while (!opcodes.empty()) {
            const unsigned first = hex(opcodes);
            unsigned last = first;
            if (!opcodes.empty() && opcodes.front() == '+') {
                last = first + 7;
                opcodes.remove_prefix(1);
            } else if (!opcodes.empty() && opcodes.front() == '-') {
                opcodes.remove_prefix(1);
                last = hex(opcodes);
            }
            for (unsigned opcode = first; opcode <= last; ++opcode)
                add_opcode(row, encoding, map, opcode + changes.opcode, vex, changes);
            if (!opcodes.empty())
                opcodes.remove_prefix(1); // the comma
        }
    }

    consteval Tables build() {
        tables_.nodes[0] = 0;
        tables_.node_count = 2;
        for (std::size_t map = 0; map < 4; ++map)
            for (std::size_t opcode = 0; opcode < 256; ++opcode) {
                tables_.maps[0][map][opcode] = build_opcode(heads_[map][opcode]);
                tables_.maps[1][map][opcode] = build_opcode(heads_[4 + map][opcode]);
            }
        return tables_;
    }

private:
    struct Subset {
        std::array<std::uint16_t, kMaxRowsPerOpcode> rows{};
        std::size_t count = 0;
    };

    static consteval unsigned hex(std::string_view& text) {
        unsigned value = 0;
        for (unsigned i = 0; i < 2; ++i) {
            const char digit = text[i];
            value = value * 16 + unsigned(digit <= '9' ? digit - '0' : digit - 'A' + 10);
        }
        text.remove_prefix(2);
        return value;
    }

    consteval void add_opcode(const Row& row, std::string_view constraints, unsigned map,
                              unsigned opcode, bool vex, const Changes& changes) {
        const Op op = changes.op == Op::Invalid ? row.op : changes.op;
        if (vex)
            add_vex(constraints, map, opcode, op, row.operands, row.traits);
        else {
            auto parsed =
                parse_row(constraints, opcode, op, row.operands, row.traits, changes.traits);
            if (changes.reg >= 0) {
                parsed.constraints.set(Choice::Reg, 1u << changes.reg);
                parsed.entry.checks |= kHasModrm;
                parsed.entry.modrm_mask = 0xff;
            }
            append(heads_[map][opcode], parsed);
        }
        if (row.vex_operands != nullptr)
            add_vex(constraints, map, opcode, op, row.vex_operands, row.vex_traits);
    }

    consteval void add_vex(std::string_view constraints, unsigned map, unsigned opcode, Op op,
                           std::string_view operands, std::string_view traits) {
        auto parsed = parse_row(constraints, opcode, op, operands, traits, "");
        parsed.entry.attributes |= attribute::kProtectedOnly;
        auto& head = heads_[4 + map][opcode];
        if (!has_word(traits, "ii")) {
            append(head, parsed);
            return;
        }
        parsed.constraints.set(Choice::L, 1);
        parsed.entry.feature = IsaFeature::Avx;
        append(head, parsed);
        parsed.constraints.set(Choice::L, 2);
        parsed.entry.feature = IsaFeature::Avx2;
        append(head, parsed);
    }

    consteval void append(std::uint16_t& head, const ParsedRow& row) {
        if (row_count_ == kMaxRows)
            bad_row("kMaxRows is too small");
        const auto index = std::uint16_t(row_count_++);
        rows_[index] = row;
        next_[index] = kEnd;
        std::uint16_t* link = &head;
        while (*link != kEnd)
            link = &next_[*link];
        *link = index;
    }

    consteval Node build_opcode(std::uint16_t head) {
        Subset subset;
        for (auto row = head; row != kEnd; row = next_[row])
            subset.rows[subset.count++] = row;
        return build_node(subset, 0);
    }

    consteval Node build_node(const Subset& subset, std::size_t choice) {
        if (subset.count == 0)
            return 0;
        while (choice < kChoiceWays.size() && !decides(subset, choice))
            ++choice;
        if (choice == kChoiceWays.size())
            return entry_of(subset.rows[0]);
        const std::size_t ways = kChoiceWays[choice];
        std::array<Node, 8> children{};
        bool same = true;
        for (std::size_t value = 0; value < ways; ++value) {
            Subset matching;
            for (std::size_t i = 0; i < subset.count; ++i)
                if ((mask(subset.rows[i], choice) >> value & 1u) != 0)
                    matching.rows[matching.count++] = subset.rows[i];
            children[value] = build_node(matching, choice + 1);
            same = same && children[value] == children[0];
        }
        if (same)
            return children[0];
        const std::size_t place = tables_.node_count;
        tables_.node_count += ways;
        if (tables_.node_count > kMaxNodes)
            bad_row("kMaxNodes is too small");
        for (std::size_t value = 0; value < ways; ++value)
            tables_.nodes[place + value] = children[value];
        return branch_node(Choice(choice), place);
    }

    consteval unsigned mask(std::uint16_t row, std::size_t choice) const {
        return rows_[row].constraints.masks[choice];
    }

    consteval bool decides(const Subset& subset, std::size_t choice) const {
        const unsigned full = (1u << kChoiceWays[choice]) - 1;
        for (std::size_t i = 0; i < subset.count; ++i)
            if (mask(subset.rows[i], choice) != full)
                return true;
        return false;
    }

    consteval Node entry_of(std::uint16_t row) {
        if (rows_[row].entry.op == Op::Invalid)
            return 0;
        if (places_[row] == 0) {
            if (tables_.entry_count == kMaxEntries)
                bad_row("kMaxEntries is too small");
            places_[row] = Node(tables_.entry_count);
            tables_.entries[tables_.entry_count++] = rows_[row].entry;
        }
        return places_[row];
    }

    std::array<ParsedRow, kMaxRows> rows_{};
    std::array<std::uint16_t, kMaxRows> next_{};
    std::array<Node, kMaxRows> places_{};
    std::array<std::array<std::uint16_t, 256>, 8> heads_ = no_heads(); // legacy maps, VEX maps
    std::size_t row_count_ = 0;
    Tables tables_{};
};

consteval Tables build_tables() {
    Builder builder;
    unsigned number = 0;
    for (const Row& operation : kArithmeticOperations) {
        for (const Row& form : kArithmeticForms)
            builder.add_row(form, false, {operation.op, number * 8, -1, operation.traits});
        for (const Row& form : kArithmeticGroup)
            builder.add_row(form, false, {operation.op, 0, int(number), operation.traits});
        ++number;
    }
    builder.add_rows(kCompareForms, false);
    number = 0;
    for (const Row& operation : kShiftOperations) {
        for (const Row& form : kShiftGroup)
            builder.add_row(form, false, {operation.op, 0, int(number), operation.traits});
        ++number;
    }
    builder.add_rows(kIntegerRows, false);
    builder.add_rows(kBmiRows, true);
    builder.add_rows(kSystemRows, false);
    builder.add_rows(kX87Rows, false);
    builder.add_rows(kMmxRows, false);
    builder.add_rows(kSseRows, false);
    builder.add_rows(kAvxRows, true);
    return builder.build();
}

} // namespace

constinit const Tables kTables = build_tables();

} // namespace doppel::cpu::x86::decoder
