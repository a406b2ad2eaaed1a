// SPDX-License-Identifier: Apache-2.0
#include "vmm/statistics.hpp"

#include <sys/resource.h>

#include <array>
#include <functional>
#include <iterator>

#include <fmt/format.h> // format_to: core.h alone does not link where clang compiles

namespace doppel::vmm {

namespace {

using cpu::VcpuStats;

struct Row {
    const char* name;
    std::uint64_t VcpuStats::* member;
};

constexpr std::array kRows{
    Row{"instructions interpreted", &VcpuStats::instructions},
    Row{"code blocks dispatched", &VcpuStats::blocks},
    Row{"translations", &VcpuStats::translations},
    Row{"translations of hot loops", &VcpuStats::loops},
    Row{"guest bytes translated", &VcpuStats::translated_guest_bytes},
    Row{"guest instructions translated", &VcpuStats::translated_instructions},
    Row{"translating one, ns", &VcpuStats::translation_ns},
    Row{"host bytes for 100 guest bytes, median block", &VcpuStats::host_bytes_percent},
    Row{"code cache bytes", &VcpuStats::code_cache_bytes},
    Row{"code cache evictions", &VcpuStats::code_cache_evictions},
    Row{"TLB misses", &VcpuStats::tlb_misses},
    Row{"TLB flushes", &VcpuStats::tlb_flushes},
    Row{"fallbacks to the interpreter", &VcpuStats::fallbacks},
    Row{"users' code run directly, ns", &VcpuStats::direct_ns},
    Row{"entered", &VcpuStats::direct_runs},
    Row{"pages mapped for it", &VcpuStats::direct_pages},
    Row{"given up, as it did not pay", &VcpuStats::direct_given_up},
    Row{"exceptions", &VcpuStats::exceptions},
    Row{"interrupts", &VcpuStats::interrupts},
    Row{"port accesses", &VcpuStats::pio_accesses},
    Row{"MMIO accesses", &VcpuStats::mmio_accesses},
    Row{"halts", &VcpuStats::halts},
    Row{"kicks", &VcpuStats::kicks},
    Row{"stops of all vCPUs", &VcpuStats::stops},
    Row{"waiting for them, ns", &VcpuStats::stop_waiting_ns},
};

std::uint64_t sum_of(std::span<const VcpuFigures> vcpus, std::uint64_t VcpuStats::* member) {
    std::uint64_t sum = 0;
    for (const auto& vcpu : vcpus)
        sum += vcpu.stats.*member;
    return sum;
}

using Line = std::function<void(std::string_view, std::uint64_t)>;

/// Exceptions by vector; those that never came have no line.
void exceptions(std::span<const VcpuFigures> vcpus, const Line& line) {
    for (std::uint8_t vector = 0; vector < 32; ++vector) {
        std::uint64_t sum = 0;
        for (const auto& vcpu : vcpus)
            if (vcpu.events != nullptr)
                sum += vcpu.events->exceptions(static_cast<cpu::x86::Vector>(vector));
        if (sum != 0)
            line(fmt::format("exceptions, {}", cpu::x86::exception_name(vector)), sum);
    }
}

void exits(std::span<const VcpuFigures> vcpus, const Line& line) {
    const auto& first = vcpus.front().stats.exits;
    for (std::size_t i = 0; i < first.size(); ++i) {
        std::uint64_t sum = 0;
        for (const auto& vcpu : vcpus)
            sum += vcpu.stats.exits.at(i).count;
        line(fmt::format("exits, {}", first.at(i).name), sum);
    }
}

double seconds(const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

} // namespace

std::string format_statistics(std::string_view engine, std::uint64_t vm_time_ns,
                              std::span<const VcpuFigures> vcpus) {
    std::string out = fmt::format("engine: {}\nvCPUs: {}\n", engine, vcpus.size());
    const auto line = [&](std::string_view name, auto value) {
        fmt::format_to(std::back_inserter(out), "{}: {}\n", name, value);
    };
    const auto executed = sum_of(vcpus, &VcpuStats::executed);
    line("instructions executed", executed == 0
                                      ? "not counted (virtual time and the interpreter count them)"
                                      : fmt::format("{}", executed));
    for (const auto& row : kRows)
        line(row.name, sum_of(vcpus, row.member));
    exceptions(vcpus, line);
    exits(vcpus, line);
    std::uint64_t sleeps = 0;
    std::uint64_t cpu_ns = 0;
    for (const auto& vcpu : vcpus) {
        sleeps += vcpu.halt_sleeps;
        cpu_ns += vcpu.cpu_time_ns;
    }
    line("halted sleeps", sleeps);
    line("VM time, s", fmt::format("{:.3f}", static_cast<double>(vm_time_ns) / 1e9));
    line("vCPU threads' CPU time, s", fmt::format("{:.3f}", static_cast<double>(cpu_ns) / 1e9));
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    line("process CPU time, s, user", fmt::format("{:.3f}", seconds(usage.ru_utime)));
    line("process CPU time, s, system", fmt::format("{:.3f}", seconds(usage.ru_stime)));
    line("peak resident memory, KiB", usage.ru_maxrss);
    return out;
}

} // namespace doppel::vmm
