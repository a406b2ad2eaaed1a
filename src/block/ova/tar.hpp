// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The files of a tar archive (POSIX.1-2017 ustar; sizes of GNU tar beyond 8 GiB, long names of
/// GNU and pax). Owner thread only.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "block/node.hpp"

namespace doppel::block::ova {

struct Member {
    std::string name;
    std::uint64_t begin = 0; // of its content in the archive
    std::uint64_t size_bytes = 0;
};

constexpr std::size_t kTarBlock = 512;
bool is_tar(std::span<const std::byte> head);
/// The name in an archive's first header; empty: it is none.
std::string first_name(std::span<const std::byte> head);
/// Regular files only. Error Corrupt: a header is damaged, or there are too many.
Task<std::vector<Member>> list_members(Node& archive);

/// A file inside another one, which outlives it.
class MemberNode final : public Node {
public:
    MemberNode(Node& archive, Member member) : archive_{archive}, member_{std::move(member)} {}
    std::string driver() const override { return "file"; }
    std::string name() const override { return archive_.name() + ":" + member_.name; }
    std::uint64_t size() const override { return member_.size_bytes; }
    bool read_only() const override { return true; }
    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t, IoBuffer, Durability) override { return refuse(); }
    Task<void> write_zeroes(std::uint64_t, std::uint64_t, Unmap, Durability) override {
        return refuse();
    }
    Task<void> discard(std::uint64_t, std::uint64_t) override { return refuse(); }
    Task<void> flush() override { return ready<void>({}); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    Task<void> resize(std::uint64_t) override { return refuse(); }

private:
    Task<void> refuse() const;
    Node& archive_;
    Member member_;
};

} // namespace doppel::block::ova
