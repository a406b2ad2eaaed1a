// SPDX-License-Identifier: Apache-2.0
/// The engine on the host's own /dev/kvm, whatever it is good for: ring 3 and a few simple
/// instructions of ring 0, which a page-table KVM has, too. A pass says that this code uses the API
/// rightly, not that a kernel runs. Without /dev/kvm the whole program is skipped, and says so.
#include <doctest/doctest.h>

#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/unique_fd.hpp"
#include "cpu/kvm/bare_guest.hpp"
#include "cpu/kvm/bare_machine.hpp"
#include "cpu/x86/interpreter/vcpu/interpreter_vcpu.hpp"

using namespace doppel;
using namespace doppel::cpu;
using namespace doppel::cpu::kvm;
using namespace doppel::cpu::x86;
using memory::GuestMemory;
using Ring = BareGuest::Ring;

// 1c000h: interrupts counted. Ports: 10h stops the vCPU, 40h is a doorbell.
asm(R"(
    .pushsection .rodata
    .intel_syntax noprefix
    .balign 16
live_begin:
live_fail:
    mov eax, 0xee
    out 0x10, al
1:  jmp 1b

live_write_pages: # rsi: first, rdx: step, rcx: how many, r8: value, which grows
    mov [rsi], r8
    add rsi, rdx
    inc r8
    dec rcx
    jnz live_write_pages
    out 0x10, al
1:  jmp 1b

live_ring: # rcx times
    out 0x40, al
    dec rcx
    jnz live_ring
    out 0x10, al
1:  jmp 1b

live_count_interrupts: # until there were rcx
    mov esi, 0xfee00000
    mov dword ptr [rsi + 0xf0], 0x1ff
    out 0x10, al
1:  sti
    hlt
    cli
    cmp [0x1c000], rcx
    jb 1b
    out 0x10, al
2:  hlt
    jmp 2b
live_on_interrupt:
    inc qword ptr [0x1c000]
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xb0], 0
    iretq

live_spin:
    inc r9
    jmp live_spin

live_compute: # rcx rounds, a stop after each half; rax and xmm0 are the result
    mov rbx, rcx
1:  imul rax, rax, 1664525
    add rax, 1013904223
    movq xmm1, rax
    paddq xmm0, xmm1
    pshufd xmm0, xmm0, 0x4e
    dec rcx
    jnz 1b
    out 0x10, al
    mov rcx, rbx
    jmp 1b
live_end:
    .att_syntax prefix
    .popsection
    .globl live_begin, live_end, live_fail, live_write_pages, live_ring
    .globl live_count_interrupts, live_on_interrupt, live_spin, live_compute
)");
extern "C" const std::byte live_begin[], live_end[], live_fail[], live_write_pages[], live_ring[],
    live_count_interrupts[], live_on_interrupt[], live_spin[], live_compute[];

namespace {

constexpr std::uint16_t kStop = 0x10, kBell = 0x40;
constexpr std::uint8_t kVector = 0x51;
constexpr std::uint64_t kCounter = 0x1c000;

bool have_kvm() {
    const auto system = KvmSystem::open();
    if (!system)
        std::fprintf(stderr, "SKIPPED: %s\n", system.error().message().c_str());
    return system.has_value();
}

std::uint64_t offset_of(const std::byte* label) {
    return static_cast<std::uint64_t>(label - live_begin);
}

/// Stops whichever vCPU is named, and keeps what was written.
struct StopPort final : bus::IoHandler {
    cpu::Vcpu* vcpu = nullptr;
    std::uint64_t last = 0;
    std::uint64_t io_read(bus::IoAccess) override { return 0; }
    void io_write(bus::IoAccess, std::uint64_t value) override {
        last = value;
        vcpu->kick();
    }
};

struct CountingPort final : bus::IoHandler {
    unsigned writes = 0;
    std::uint64_t io_read(bus::IoAccess) override { return 0; }
    void io_write(bus::IoAccess, std::uint64_t) override { ++writes; }
};

struct Live {
    std::unique_ptr<BareMachine> bare;
    StopPort stop;
    CountingPort bell;

    explicit Live(std::uint64_t ram_bytes = 1 << 20) {
        auto made = BareMachine::create(Syscalls::host(), ram_bytes);
        REQUIRE_MESSAGE(made.has_value(), (made ? "" : made.error().message()));
        bare = std::move(*made);
        stop.vcpu = &vcpu();
        REQUIRE(bare->pio.map({kStop, 1, "stop", {1, 1, true}, &stop}));
        REQUIRE(bare->pio.map({kBell, 1, "bell", {1, 1, true}, &bell}));
        const std::array handlers{BareGuest::Handler{kVector, offset_of(live_on_interrupt)}};
        BareGuest::place(*bare->memory, {live_begin, live_end}, offset_of(live_fail), handlers);
    }
    KvmVcpu& vcpu() { return *bare->vcpus.front(); }
    CpuState& begin(const std::byte* code, Ring ring) {
        BareGuest::enter(vcpu().state(), offset_of(code), ring);
        vcpu().state_changed();
        return vcpu().state();
    }
    void run() {
        const auto exit = vcpu().run();
        if (const auto* error = std::get_if<ErrorExit>(&exit))
            FAIL(error->error.message());
        REQUIRE(std::holds_alternative<KickExit>(exit));
        REQUIRE(stop.last != 0xee);
    }
};

struct Result {
    std::uint64_t rax;
    std::array<std::uint64_t, 2> xmm0;
    bool operator==(const Result&) const = default;
};

Result result_of(const CpuState& state) {
    Result result{state.gpr[Rax], {}};
    std::memcpy(result.xmm0.data(), state.xsave.bytes.data() + 160, 16);
    return result;
}

/// live_compute's result after `rounds`, by this CPU.
Result computed(std::uint64_t rounds) {
    Result r{1, {0, 0}};
    while (rounds-- > 0) {
        r.rax = r.rax * 1664525 + 1013904223;
        r.xmm0[0] += r.rax;
        std::swap(r.xmm0[0], r.xmm0[1]);
    }
    return r;
}

template <typename To> void hand_over(const cpu::Vcpu& from, To& to) {
    state::Encoder encoder;
    from.save(encoder);
    state::Decoder decoder{encoder.bytes()};
    const auto loaded = to.load(decoder);
    REQUIRE_MESSAGE(loaded.has_value(), (loaded ? "" : loaded.error().message()));
}

} // namespace

TEST_CASE("kvm-ring3, kvm-api: the dirty log has exactly the pages that were written") {
    if (!have_kvm())
        return;
    constexpr std::uint64_t kFirst = 1 << 20, kStep = 3 * 4096, kPages = 1024;
    for (const auto ring : {Ring::User, Ring::Kernel}) {
        CAPTURE(ring == Ring::User);
        Live live{16 << 20};
        auto& ram = *live.bare->memory;
        ram.set_write_log(live.bare->machine.get());
        // KVM may count a page as written when it maps it, which the first fetch of the code does.
        live.begin(live_ring, ring).gpr[Rcx] = 1;
        live.run();
        ram.start_dirty_log();
        for (int round = 0; round < 3; ++round) {
            auto& state = live.begin(live_write_pages, ring);
            state.gpr[Rsi] = kFirst + static_cast<std::uint64_t>(round) * 4096;
            state.gpr[Rdx] = kStep;
            state.gpr[Rcx] = kPages;
            state.gpr[R8] = 1000;
            live.run();
            const auto log = ram.harvest_dirty_log();
            std::uint64_t exact = 0;
            for (std::uint64_t page = 0; page < ram.size_bytes() / 4096; ++page) {
                const auto from = kFirst / 4096 + static_cast<std::uint64_t>(round);
                const bool written =
                    page >= from && (page - from) % 3 == 0 && (page - from) / 3 < kPages;
                const bool logged = (log[page / 64] >> (page % 64) & 1) != 0;
                CHECK_MESSAGE(logged == written, "page ", page);
                exact += logged == written;
                if (written)
                    CHECK(ram.load<std::uint64_t>({page * 4096}) == 1000 + (page - from) / 3);
            }
            CHECK(exact == ram.size_bytes() / 4096);
        }
        ram.stop_dirty_log();
        ram.set_write_log(nullptr);
    }
}

TEST_CASE("kvm-ring3: a doorbell rings an eventfd and nobody else, until it is taken away") {
    if (!have_kvm())
        return;
    Live live;
    const base::UniqueFd event{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    const Doorbell doorbell{.space = Doorbell::Space::Pio, .address = kBell, .size_bytes = 1};
    REQUIRE(live.bare->machine->add_doorbell(doorbell, event.get()));
    CHECK_FALSE(live.bare->machine->add_doorbell(doorbell, event.get())); // it is taken
    live.begin(live_ring, Ring::User).gpr[Rcx] = 100;
    live.run();
    std::uint64_t rung = 0;
    CHECK(::read(event.get(), &rung, sizeof rung) == sizeof rung);
    CHECK(rung == 100);
    CHECK(live.bell.writes == 0);
    REQUIRE(live.bare->machine->remove_doorbell(doorbell, event.get()));
    live.begin(live_ring, Ring::User).gpr[Rcx] = 7;
    live.run();
    CHECK(live.bell.writes == 7);
}

TEST_CASE("kvm-api: MSIs and irqfds wake a halted vCPU, one interrupt each") {
    if (!have_kvm())
        return;
    Live live;
    const bus::MsiMessage message{0xfee0'0000, kVector};
    const base::UniqueFd event{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    const auto gsi = live.bare->machine->add_irqfd(event.get(), message);
    REQUIRE(gsi);
    CHECK(*gsi >= KvmMachine::kIoApicInputs);
    auto& state = live.begin(live_count_interrupts, Ring::Kernel);
    constexpr std::uint64_t kInterrupts = 20;
    state.gpr[Rcx] = kInterrupts;
    live.run(); // the APIC is on now
    const auto counted = [&] { return *live.bare->memory->load<std::uint64_t>({kCounter}); };
    std::jthread sender{[&] {
        for (std::uint64_t sent = 0; sent < kInterrupts; ++sent) {
            if (sent % 2 == 0) {
                live.bare->machine->send_msi(message);
            } else {
                const std::uint64_t one = 1;
                if (::write(event.get(), &one, sizeof one) != sizeof one)
                    return;
            }
            while (counted() <= sent)
                std::this_thread::yield();
        }
    }};
    live.run();
    sender.join();
    CHECK(counted() == kInterrupts);
    CHECK(live.bare->machine->remove_irqfd(*gsi, event.get()));
}

TEST_CASE("kvm-api: a timer that ends while the vCPU stands is seen, and ticks once") {
    if (!have_kvm())
        return;
    constexpr std::size_t kLvtTimer = 0x32, kInitialCount = 0x38, kCurrentCount = 0x39,
                          kDivide = 0x3e, kRequested = 0x20 + kVector / 32;
    constexpr std::uint32_t kCounts = 10'000'000, kByOne = 0xb, kDeadlineMode = 2u << 17;
    constexpr std::chrono::milliseconds kSoon{1}, kLongAfter{40};
    for (const bool by_deadline : {false, true}) {
        CAPTURE(by_deadline);
        Live live;
        const auto counted = [&] { return *live.bare->memory->load<std::uint64_t>({kCounter}); };
        live.begin(live_count_interrupts, Ring::Kernel).gpr[Rcx] = 1;
        live.run(); // the APIC is on now
        auto image = live.vcpu().apic();
        image.registers[kLvtTimer] = kVector | (by_deadline ? kDeadlineMode : 0);
        image.registers[kDivide] = kByOne;
        image.registers[kInitialCount] = image.registers[kCurrentCount] = by_deadline ? 0 : kCounts;
        const auto& tsc = *live.bare->wiring(0).tsc;
        const auto deadline = tsc.read() + tsc.frequency_hz() / 100;
        image.tsc_deadline = by_deadline ? deadline : 0;
        live.vcpu().set_apic(image);
        std::jthread kicker{[&] {
            std::this_thread::sleep_for(kSoon);
            live.vcpu().kick();
        }};
        live.run();
        kicker.join();
        std::this_thread::sleep_for(kLongAfter);
        const auto stands = live.vcpu().apic();
        if (counted() == 0) { // unless the kick came too late
            const bool is_due = (stands.registers[kRequested] >> kVector % 32 & 1) != 0;
            CHECK((is_due || (by_deadline && stands.tsc_deadline == deadline)));
            live.run();
        }
        CHECK(counted() == 1);
    }
}

TEST_CASE("kvm-ring3: a kick ends a loop that never leaves the guest") {
    if (!have_kvm())
        return;
    Live live;
    live.begin(live_spin, Ring::User);
    std::uint64_t before = 0;
    for (int i = 0; i < 20; ++i) {
        std::jthread kicker{[&] {
            std::this_thread::sleep_for(std::chrono::milliseconds{1}); // lets it get into the guest
            live.vcpu().kick();
        }};
        live.run();
        CHECK(live.vcpu().state().cpl == 3);
        CHECK(live.vcpu().state().gpr[R9] >= before);
        before = live.vcpu().state().gpr[R9];
    }
    CHECK(before > 0);
    live.vcpu().kick(); // before it runs: counts as well
    live.run();
}

TEST_CASE("kvm-ring3: a vCPU goes on in another VM, on the interpreter, and back, bit for bit") {
    if (!have_kvm())
        return;
    constexpr std::uint64_t kRounds = 5000;
    Live first, second;
    first.begin(live_compute, Ring::User).gpr[Rcx] = kRounds;
    first.vcpu().state().gpr[Rax] = 1;
    first.run();
    CHECK(result_of(first.vcpu().state()) == computed(kRounds));

    auto other = InterpreterVcpu::create(first.bare->wiring(0), 1);
    REQUIRE(other);
    first.stop.vcpu = other->get();
    hand_over(first.vcpu(), **other);
    REQUIRE(std::holds_alternative<KickExit>((*other)->run()));
    CHECK(result_of((*other)->state()) == computed(2 * kRounds));

    hand_over(**other, second.vcpu()); // its RAM has the same code
    second.run();
    CHECK(result_of(second.vcpu().state()) == computed(3 * kRounds));
}

TEST_CASE("kvm-api: what is put into the kernel comes back from it") {
    if (!have_kvm())
        return;
    Live live;
    auto& state = live.begin(live_spin, Ring::User);
    for (std::size_t i = 0; i < state.gpr.size(); ++i)
        if (i != Rsp && i != R9)
            state.gpr[i] = 0x1111'1111'1111'1111u * i;
    state.cr2 = 0x1234'5678;
    state.dr = {0x1000, 0x2000, 0x3000, 0x4000};
    state.kernel_gs_base = 0x7000'0000'1000;
    state.sysenter_eip = 0x5000;
    state.fmask = 0x700;
    state.segment[Fs].base = 0x6000'0000'0000;
    for (std::size_t i = 160; i < 416; ++i) // XMM registers
        state.xsave.bytes[i] = static_cast<std::byte>(i);
    state.xsave.bytes[512] = std::byte{3};
    const auto before = state;
    live.vcpu().state_changed();
    std::jthread kicker{[&] {
        std::this_thread::sleep_for(std::chrono::milliseconds{2});
        live.vcpu().kick();
    }};
    live.run();
    const auto& after = live.vcpu().state();
    for (std::size_t i = 0; i < after.gpr.size(); ++i)
        if (i != R9)
            CHECK(after.gpr[i] == before.gpr[i]);
    CHECK(after.cr2 == before.cr2);
    CHECK(after.dr == before.dr);
    CHECK(after.kernel_gs_base == before.kernel_gs_base);
    CHECK(after.sysenter_eip == before.sysenter_eip);
    CHECK(after.fmask == before.fmask);
    CHECK(after.segment[Fs].base == before.segment[Fs].base);
    CHECK(std::memcmp(after.xsave.bytes.data() + 160, before.xsave.bytes.data() + 160, 256) == 0);
    CHECK(after.gdtr.base == before.gdtr.base);
    CHECK(after.tr.selector == before.tr.selector);
}
