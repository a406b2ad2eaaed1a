// SPDX-License-Identifier: Apache-2.0
#include "cpu/translator/mmu/tlb_set.hpp"

#include <array>
#include <cstdlib>
#include <functional>
#include <memory>

#include <doctest/doctest.h>

namespace doppel::cpu::translator {
namespace {

struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
};

struct Rig {
    Rig() {
        auto* const zeros = static_cast<std::byte*>(
            std::aligned_alloc(TlbInstance::kAlignment, TlbSet::kMemoryBytes));
        std::fill_n(zeros, TlbSet::kMemoryBytes, std::byte{});
        memory.reset(zeros);
        tlbs = std::make_unique<TlbSet>(zeros, kNoStack);
    }
    /// What translated code finds.
    static bool readable(const TlbInstance& tlb, std::uint64_t linear) {
        return (tlb.rtag[TlbInstance::index(linear)] ^ linear) < 4096;
    }
    static bool writable(const TlbInstance& tlb, std::uint64_t linear) {
        return (tlb.wtag[TlbInstance::index(linear)] ^ linear) < 4096;
    }
    static bool has_branch(const TlbInstance& tlb, std::uint64_t rip) {
        return tlb.branches[TlbInstance::branch_index(rip)].tag == rip;
    }
    void drop_write(const std::byte* page) { tlbs->drop_write({&page, 1}); }
    std::byte* page() {
        return ram.data() + (4096 - reinterpret_cast<std::uintptr_t>(ram.data()) % 4096);
    }

    static constexpr TlbSet::NoStack kNoStack{.page = std::uint64_t{1} << 62, .addend = 0};
    std::unique_ptr<std::byte, Free> memory;
    std::unique_ptr<TlbSet> tlbs;
    std::array<std::byte, 8192> ram{};
};

constexpr std::uint64_t kAt = 0x7fff'1234'5678;

TEST_CASE_FIXTURE(Rig, "an empty instance matches no address, page 0 and the last one included") {
    const TlbInstance& tlb = *tlbs->select(0, View::User);
    for (const std::uint64_t linear :
         {std::uint64_t{0}, std::uint64_t{0x1000}, kAt, ~std::uint64_t{0}}) {
        CHECK_FALSE(readable(tlb, linear));
        CHECK_FALSE(writable(tlb, linear));
        CHECK_FALSE(has_branch(tlb, linear));
    }
}

TEST_CASE_FIXTURE(Rig, "an instance says which offsets in a page leave room for an access") {
    const TlbInstance& tlb = *tlbs->select(0, View::User);
    for (const std::uint32_t bytes : {1u, 2u, 4u, 8u, 16u, 24u, 64u, 192u})
        CHECK(tlb.limits.at(TlbInstance::limit_of(bytes)) == 4096 - bytes);
    for (const std::uint32_t bytes : {0u, 3u, 6u, 10u, 12u, 200u})
        CHECK(TlbInstance::limit_of(bytes) == TlbInstance::kNoLimit);
}

TEST_CASE_FIXTURE(Rig,
                  "an entry gives the host address; without permission there is no write tag") {
    const TlbInstance& tlb = *tlbs->select(0, View::User);
    tlbs->insert({.linear = kAt, .host = page(), .writable = false});
    CHECK(readable(tlb, kAt));
    CHECK_FALSE(writable(tlb, kAt));
    CHECK(tlb.addend[TlbInstance::index(kAt)] + (kAt & ~std::uint64_t{0xfff}) ==
          reinterpret_cast<std::uint64_t>(page()));
}

TEST_CASE_FIXTURE(Rig, "global entries survive a flush of the others, not a full one") {
    const TlbInstance& tlb = *tlbs->select(3, View::Kernel);
    tlbs->insert({.linear = kAt, .host = page(), .writable = true, .global = true});
    tlbs->insert({.linear = kAt + 4096, .host = page(), .writable = true});
    tlbs->flush_pcid(3);
    CHECK(writable(tlb, kAt));
    CHECK_FALSE(readable(tlb, kAt + 4096));
    tlbs->flush_all();
    CHECK_FALSE(readable(tlb, kAt));
}

TEST_CASE_FIXTURE(Rig, "a page is flushed for its PCID, a global one for all") {
    const TlbInstance& one = *tlbs->select(1, View::Kernel);
    tlbs->insert({.linear = kAt, .host = page()});
    tlbs->insert({.linear = kAt + 4096, .host = page(), .global = true});
    const TlbInstance& two = *tlbs->select(2, View::Kernel);
    tlbs->insert({.linear = kAt, .host = page()});
    tlbs->flush_page(2, kAt);
    tlbs->flush_page(2, kAt + 4096);
    CHECK(readable(one, kAt));
    CHECK_FALSE(readable(two, kAt));
    CHECK_FALSE(readable(one, kAt + 4096));
}

TEST_CASE_FIXTURE(Rig, "every flush takes the stack page with it, in the views it reaches") {
    TlbInstance& first = *tlbs->select(1, View::User);
    TlbInstance& second = *tlbs->select(2, View::User);
    const auto fill = [&] { first.stack_page = second.stack_page = 0x7000; };
    fill();
    tlbs->flush_pcid(1);
    CHECK(first.stack_page == kNoStack.page);
    CHECK(second.stack_page == 0x7000);
    fill();
    tlbs->flush_page(2, 0x9000);
    CHECK(first.stack_page == 0x7000);
    CHECK(second.stack_page == kNoStack.page);
    tlbs->select(1, View::User);
    tlbs->insert({.linear = 0x7000, .host = page(), .writable = true});
    fill();
    drop_write(page());
    CHECK(first.stack_page == kNoStack.page);
    CHECK(second.stack_page == 0x7000); // which is another page there
}

TEST_CASE_FIXTURE(Rig,
                  "a branch of the kernel is known in every address space until it is flushed") {
    const auto* const code = reinterpret_cast<const std::uint8_t*>(page());
    const auto known = [&](std::uint64_t rip) { return tlbs->shared_branch(rip) != nullptr; };
    const auto enter = [&] { tlbs->insert_branch({.rip = kAt, .host = code, .global = true}); };
    tlbs->select(1, View::User);
    enter();
    tlbs->select(1, View::Kernel);
    CHECK_FALSE(known(kAt)); // the kernel may not be allowed to execute it
    tlbs->insert_branch({.rip = kAt, .host = code});
    CHECK_FALSE(known(kAt));
    enter();
    CHECK(tlbs->shared_branch(kAt) == code);
    tlbs->flush_non_global();
    tlbs->flush_page(1, kAt + 0x20'0000);
    tlbs->select(2, View::KernelAc);
    CHECK(known(kAt));
    tlbs->select(2, View::User);
    CHECK_FALSE(known(kAt));
    tlbs->select(1, View::Kernel);
    tlbs->flush_page(1, kAt + 4096); // the page of code may be a large one
    CHECK_FALSE(known(kAt));
    enter();
    tlbs->drop_branch(kAt);
    CHECK_FALSE(known(kAt));
    enter();
    tlbs->flush_branches();
    CHECK_FALSE(known(kAt));
    enter();
    tlbs->flush_all();
    CHECK_FALSE(known(kAt));
    CHECK_FALSE(known(0));
}

TEST_CASE_FIXTURE(Rig, "a shared branch of a user is one view's, until that is flushed") {
    const auto* const code = reinterpret_cast<const std::uint8_t*>(page());
    const auto known = [&] { return tlbs->shared_branch(kAt) == code; };
    const auto enter = [&] {
        tlbs->select(1, View::User);
        tlbs->insert_branch({.rip = kAt, .host = code});
        CHECK(known());
    };
    enter();
    tlbs->select(2, View::User);
    CHECK_FALSE(known());
    tlbs->select(1, View::User32);
    CHECK_FALSE(known());
    tlbs->flush_pcid(2);
    tlbs->flush_page(1, kAt + 0x10'0000);
    tlbs->select(1, View::User);
    CHECK(known());
    tlbs->flush_page(1, kAt + 4096); // an instruction may reach into it
    CHECK_FALSE(known());
    enter();
    tlbs->drop_branch(kAt);
    CHECK_FALSE(known());
    enter();
    tlbs->flush_pcid(1);
    CHECK_FALSE(known());
    enter();
    tlbs->flush_branches();
    CHECK_FALSE(known());
    enter();
    for (std::uint16_t pcid = 2; pcid < 2 + TlbSet::kSpaces; ++pcid)
        tlbs->select(pcid, View::User);
    tlbs->select(1, View::User); // recycled twice
    CHECK_FALSE(known());
}

TEST_CASE_FIXTURE(Rig, "a shared branch of a user comes back into its view's own cache") {
    const auto* const code = reinterpret_cast<const std::uint8_t*>(page());
    constexpr std::uint64_t kRival = kAt + 0x4000'0000;
    const std::size_t index = TlbInstance::branch_index(kAt);
    TlbInstance& user = *tlbs->select(1, View::User);
    CHECK(tlbs->recall_branch(kAt) == nullptr);
    tlbs->insert_branch({.rip = kAt, .host = code, .page_shift = 21});
    user.branches[index].tag = kRival;
    CHECK(tlbs->recall_branch(kAt) == code);
    CHECK(user.branches[index].tag == kAt);
    CHECK(user.branches[index].host == code);
    tlbs->flush_page(1, kAt - 0x10'0000); // of the same large page
    CHECK_FALSE(has_branch(user, kAt));
    CHECK(tlbs->recall_branch(kAt) == nullptr);
    tlbs->insert_branch({.rip = kAt, .host = code});
    tlbs->select(2, View::User);
    CHECK(tlbs->recall_branch(kAt) == nullptr);
    tlbs->select(1, View::Kernel);
    tlbs->insert_branch({.rip = kAt, .host = code, .global = true});
    tlbs->select(2, View::Kernel);
    CHECK(tlbs->recall_branch(kAt) == nullptr); // how large its page is nobody knows here
}

TEST_CASE_FIXTURE(Rig, "a far link or landing is one view's, until its target is flushed") {
    const auto* const code = reinterpret_cast<const std::uint8_t*>(page());
    constexpr std::uint16_t kNumber = TlbInstance::kFarLinks - 1;
    TlbInstance& user = *tlbs->select(1, View::User);
    constexpr std::uint32_t kLanding = TlbInstance::kLandings - 1;
    const auto known = [&] {
        const bool landing = user.landings[kLanding] == kAt + user.landing_bias();
        CHECK((landing || user.landings[kLanding] == 0));
        CHECK(landing == (user.far_links[kNumber].tag == kAt));
        return landing;
    };
    const auto enter = [&] {
        tlbs->select(1, View::User);
        tlbs->insert_branch({.rip = kAt, .host = code});
        tlbs->insert_far_link(kNumber, {.rip = kAt, .host = code});
        tlbs->insert_landing(kLanding, kAt);
        CHECK(known());
        CHECK(user.far_links[kNumber].host == code);
    };
    enter();
    CHECK(user.far_links[kNumber - 1].tag == 0);
    CHECK(user.landings[kLanding - 1] == 0);
    TlbInstance& kernel = *tlbs->select(1, View::Kernel);
    tlbs->insert_landing(kLanding, kAt);
    CHECK(kernel.landings[kLanding] == 0);
    CHECK(tlbs->select(2, View::User)->far_links[kNumber].tag == 0);
    tlbs->flush_pcid(2);
    tlbs->flush_page(1, kAt + 0x10'0000);
    CHECK(known());
    const std::array<std::function<void()>, 7> flushes{
        [&] { tlbs->flush_page(1, kAt); },
        [&] { tlbs->flush_page(1, kAt + 4096); }, // an instruction may reach into it
        [&] { tlbs->flush_pcid(1); },
        [&] { tlbs->flush_non_global(); },
        [&] { tlbs->flush_all(); },
        [&] { tlbs->flush_branches(); },
        [&] { // recycled
            for (std::uint16_t pcid = 2; pcid < 2 + TlbSet::kSpaces; ++pcid)
                tlbs->select(pcid, View::User);
        }};
    for (const auto& flush : flushes) {
        enter();
        flush();
        CHECK_FALSE(known());
    }
}

TEST_CASE_FIXTURE(Rig, "a far link is dropped by where it is and where it goes to") {
    const auto* const code = reinterpret_cast<const std::uint8_t*>(page());
    TlbInstance& user = *tlbs->select(1, View::User);
    tlbs->insert_branch({.rip = kAt, .host = code});
    tlbs->insert_far_link(3, {.rip = kAt, .host = code});
    const auto address = [&](std::size_t number) {
        return static_cast<std::uint32_t>(
            reinterpret_cast<std::uintptr_t>(&user.far_links[number]));
    };
    tlbs->drop_far_link(address(3), kAt + 1);
    tlbs->drop_far_link(address(2), kAt);
    tlbs->drop_far_link(address(TlbInstance::kFarLinks), kAt);
    CHECK(user.far_links[3].tag == kAt);
    tlbs->drop_far_link(address(3), kAt);
    CHECK(user.far_links[3].tag == 0);
    tlbs->insert_far_link(3, {.rip = 0, .host = code}); // would look like an empty one
    CHECK(user.far_links[3].host == code);
    CHECK(user.far_links[3].tag == 0);
    TlbInstance& kernel = *tlbs->select(1, View::Kernel);
    tlbs->insert_far_link(3, {.rip = kAt, .host = code});
    CHECK(kernel.far_links[3].tag == 0);
}

TEST_CASE_FIXTURE(Rig, "salts that come again find nothing") {
    const auto* const code = reinterpret_cast<const std::uint8_t*>(page());
    constexpr std::uint64_t kEarlier = kAt + 0x12'3456;
    tlbs->select(1, View::User);
    tlbs->insert_branch({.rip = kEarlier, .host = code});
    tlbs->select(2, View::User);
    tlbs->insert_branch({.rip = kAt, .host = code});
    for (std::uint64_t i = 0; i < 2 * TlbSet::kLastSalt; ++i) {
        tlbs->select(1, View::User);
        tlbs->flush_pcid(1);
        REQUIRE(tlbs->shared_branch(kAt) == nullptr);
        REQUIRE(tlbs->shared_branch(kEarlier) == nullptr);
        tlbs->insert_branch({.rip = kEarlier + 2, .host = code});
        REQUIRE(tlbs->shared_branch(kEarlier + 2) == code);
    }
}

TEST_CASE_FIXTURE(Rig, "translated code may go from one view of a space to another") {
    TlbInstance* const user = tlbs->select(1, View::User);
    auto* const kernel = reinterpret_cast<TlbInstance*>(reinterpret_cast<std::byte*>(user) +
                                                        TlbSet::kInstanceStride);
    tlbs->set_current(kernel);
    tlbs->insert({.linear = kAt, .host = page()});
    CHECK(readable(*kernel, kAt));
    CHECK_FALSE(readable(*user, kAt));
    CHECK(tlbs->select(1, View::Kernel) == kernel);
}

TEST_CASE_FIXTURE(Rig, "INVLPG inside a large page drops all of it, and branches into it") {
    const TlbInstance& tlb = *tlbs->select(0, View::Kernel);
    const std::uint64_t base = 0xffff'8000'0020'0000;
    tlbs->insert({.linear = base + 0x5000, .host = page(), .page_shift = 21});
    tlbs->insert_branch(
        {.rip = base + 0x5010, .host = reinterpret_cast<const std::uint8_t*>(page())});
    tlbs->flush_page(0, base + 0x1f'f000);
    CHECK_FALSE(readable(tlb, base + 0x5000));
    CHECK_FALSE(has_branch(tlb, base + 0x5010));
}

TEST_CASE_FIXTURE(Rig, "INVLPG inside a large page of code drops the branches into all of it") {
    const TlbInstance& tlb = *tlbs->select(0, View::Kernel);
    const std::uint64_t base = 0xffff'8000'0020'0000;
    tlbs->insert_branch({.rip = base + 0x5010,
                         .host = reinterpret_cast<const std::uint8_t*>(page()),
                         .page_shift = 21});
    tlbs->flush_page(0, base + 0x1f'f000);
    CHECK_FALSE(has_branch(tlb, base + 0x5010));
}

TEST_CASE_FIXTURE(Rig, "INVLPG reaches a global page of the lower half in every address space") {
    tlbs->select(1, View::Kernel);
    tlbs->insert({.linear = 0x40'0000, .host = page(), .global = true});
    const TlbInstance& tlb = *tlbs->current();
    tlbs->select(2, View::Kernel);
    tlbs->flush_page(2, 0x40'0000);
    CHECK_FALSE(readable(tlb, 0x40'0000));
}

TEST_CASE_FIXTURE(Rig, "branches go with their address space; those in global pages stay") {
    const TlbInstance& tlb = *tlbs->select(0, View::Kernel);
    const auto* const code = reinterpret_cast<const std::uint8_t*>(page());
    tlbs->insert_branch({.rip = kAt, .host = code, .global = true});
    tlbs->insert_branch({.rip = kAt + 4096, .host = code});
    tlbs->flush_non_global();
    CHECK(has_branch(tlb, kAt));
    CHECK_FALSE(has_branch(tlb, kAt + 4096));
}

TEST_CASE_FIXTURE(Rig, "a page that becomes code loses its write tags everywhere") {
    const TlbInstance& user = *tlbs->select(0, View::User);
    tlbs->insert({.linear = kAt, .host = page(), .writable = true});
    const TlbInstance& kernel = *tlbs->select(5, View::Kernel);
    tlbs->insert({.linear = 0x1000, .host = page(), .writable = true});
    drop_write(page());
    CHECK_FALSE(writable(user, kAt));
    CHECK_FALSE(writable(kernel, 0x1000));
    CHECK(readable(user, kAt));
}

TEST_CASE_FIXTURE(Rig, "a global entry that outlives a flush can still lose its write tag") {
    const TlbInstance& kernel = *tlbs->select(0, View::Kernel);
    tlbs->insert({.linear = kAt, .host = page(), .writable = true, .global = true});
    tlbs->flush_non_global();
    CHECK(writable(kernel, kAt));
    drop_write(page() + 4096);
    CHECK(writable(kernel, kAt));
    drop_write(page());
    CHECK_FALSE(writable(kernel, kAt));
}

TEST_CASE_FIXTURE(Rig, "the least recently used address space is recycled empty") {
    const TlbInstance* const first = tlbs->select(1, View::User);
    tlbs->insert({.linear = kAt, .host = page()});
    for (std::uint16_t pcid = 2; pcid < 2 + TlbSet::kSpaces; ++pcid)
        tlbs->select(pcid, View::User);
    const TlbInstance* const again = tlbs->select(1 + TlbSet::kSpaces, View::User);
    CHECK(again == first);
    CHECK_FALSE(readable(*again, kAt));
}

} // namespace
} // namespace doppel::cpu::translator
