// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The dispatcher's door to what runs users' code on the host's CPU itself (frontend/direct). It is
/// ordinary C++: the guest's vectors have been stored before each call. vCPU thread, but where
/// noted.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cpu/translator/mmu/tlb_instance.hpp"
#include "cpu/x86/system/tlb.hpp"

namespace doppel::cpu::x86::frontend {

class UserRunner {
public:
    enum class Next : std::uint8_t {
        Around,    // look around, then run on
        Interpret, // the instruction at rip; then the same
        Translate, // what is at rip must not run directly
        Lost,      // the process was killed, and the user's registers with it
    };

    /// Address spaces, by the address in CR3 and the PCID, whose users run directly; 0: none.
    std::array<std::uint64_t, 8> direct_keys{};
    bool all_direct = false;  // of every one
    bool wants_pages = false; // prime() before run()

    /// This address space is in force now. Whether its users run directly.
    virtual bool select(std::uint64_t key) = 0;
    /// A user of this one, which is in force, was interrupted. True: they run directly from now on.
    virtual bool interrupted(std::uint64_t key) = 0;
    /// It was the kernel.
    virtual void interrupted_elsewhere() = 0;
    /// Maps what users will need: pages that a TLB knows.
    virtual void prime(const translator::TlbInstance& tlb, const std::uint16_t* entries,
                       std::size_t count) = 0;
    /// On from the state, a user's, until something happens or `attention` is not `calm`.
    virtual Next run(const std::atomic<std::uint64_t>& attention, std::uint64_t calm) = 0;
    /// The vCPU will do something else than to run, or has been interrupted.
    virtual void let_go() noexcept = 0;
    /// Whether users of the address space in force still run directly.
    virtual bool selected() const = 0;

    // --- as for the TLBs of this vCPU; it stands still, the thread may be another's ---
    virtual void flush(const TlbFlush& flush) = 0;
    virtual void drop_write(const std::byte* host_page) = 0;
    virtual void drop_all_writes() = 0;
    virtual void drop_code() = 0;
    /// Whether there is anything to flush or drop.
    virtual bool holds_pages() const noexcept = 0;

    // --- any thread, async-signal-safe ---
    /// Ends run() soon: the caller has changed `attention`.
    virtual void poke() noexcept = 0;

protected:
    ~UserRunner() = default;
};

} // namespace doppel::cpu::x86::frontend
