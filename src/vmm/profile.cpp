// SPDX-License-Identifier: Apache-2.0
#include "vmm/profile.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <map>

#include <fmt/core.h>

#include "base/log.hpp"

namespace doppel::vmm {

/// One vCPU's: a table of places and how often each was seen. Written by the handler alone, on the
/// vCPU's thread; read when that has ended.
class Profile::Sampler {
public:
    struct Entry {
        cpu::x86::GuestPlace place;
        std::uint64_t count = 0; // 0: free
    };

    void begin(cpu::x86::Vcpu& vcpu) {
        vcpu_ = &vcpu;
        sigevent event{};
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = SIGPROF;
        event._sigev_un._tid = static_cast<pid_t>(::syscall(SYS_gettid));
        if (::timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_) != 0) {
            base::log_warning("no profile of a vCPU: {}", std::strerror(errno));
            return;
        }
        t_current = this;
        const timespec period{.tv_sec = 0, .tv_nsec = 1'000'000'000 / kSamplesPerSecond};
        const itimerspec times{.it_interval = period, .it_value = period};
        ::timer_settime(timer_, 0, &times, nullptr);
    }
    void end() {
        if (t_current != this)
            return;
        t_current = nullptr;
        ::timer_delete(timer_);
    }

    /// A host looks at such timers at its own ticks, so one signal may stand for several samples.
    static void on_signal(int, siginfo_t* info, void* context) {
        const int saved = errno;
        if (t_current != nullptr)
            t_current->take(
                reinterpret_cast<const void*>(
                    static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]),
                1 + static_cast<std::uint64_t>(info->si_overrun));
        errno = saved;
    }

    const std::vector<Entry>& entries() const { return entries_; }
    std::uint64_t lost() const { return lost_; }

private:
    static constexpr std::size_t kEntries = 1 << 16, kProbes = 64;

    void take(const void* host_pc, std::uint64_t times) {
        const auto place = vcpu_->place(host_pc);
        const std::uint64_t hash = (place.rip ^ place.cr3 << 7) * 0x9e37'79b9'7f4a'7c15ull;
        for (std::size_t i = 0; i < kProbes; ++i) {
            Entry& entry = entries_[((hash >> 40) + i) % kEntries];
            if (entry.count == 0)
                entry.place = place;
            if (entry.place == place) {
                entry.count += times;
                return;
            }
        }
        lost_ += times;
    }

    static thread_local Sampler* t_current;
    cpu::x86::Vcpu* vcpu_ = nullptr;
    timer_t timer_{};
    std::vector<Entry> entries_{kEntries};
    std::uint64_t lost_ = 0;
};

thread_local Profile::Sampler* Profile::Sampler::t_current = nullptr;

namespace {

base::Result<Symbols> read_symbols(const std::vector<std::string>& paths) {
    Symbols symbols;
    for (const auto& path : paths) {
        std::ifstream file{path};
        const std::string text{std::istreambuf_iterator<char>{file}, {}};
        if (!file.is_open())
            return base::fail_errno(errno, fmt::format("cannot open symbols '{}'", path));
        if (auto added = symbols.add(text); !added)
            return std::unexpected(
                std::move(added).error().with_context(fmt::format("symbols '{}'", path)));
    }
    return symbols;
}

} // namespace

Profile::Profile(std::string path, base::UniqueFd file, Symbols symbols, unsigned vcpus)
    : path_{std::move(path)}, file_{std::move(file)}, symbols_{std::move(symbols)} {
    for (unsigned i = 0; i < vcpus; ++i)
        samplers_.push_back(std::make_unique<Sampler>());
    struct sigaction action{};
    action.sa_sigaction = Sampler::on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART; // translated code has no stack
    ::sigaction(SIGPROF, &action, nullptr);
}

Profile::~Profile() = default; // the handler stays: a late signal finds nothing to do

base::Result<std::unique_ptr<Profile>>
Profile::create(const std::string& path, const std::vector<std::string>& symbols, unsigned vcpus) {
    auto names = DOPPEL_TRY(read_symbols(symbols));
    base::UniqueFd file{::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)};
    if (!file)
        return base::fail_errno(errno, fmt::format("cannot write profile '{}'", path));
    return std::unique_ptr<Profile>{new Profile{path, std::move(file), std::move(names), vcpus}};
}

void Profile::begin(unsigned index, cpu::x86::Vcpu& vcpu) { samplers_.at(index)->begin(vcpu); }
void Profile::end(unsigned index) { samplers_.at(index)->end(); }

std::string Profile::text(std::uint64_t syscall_entry) {
    symbols_.place_kernel(syscall_entry);
    std::map<std::string, std::uint64_t> counts;
    std::uint64_t lost = 0;
    for (const auto& sampler : samplers_) {
        lost += sampler->lost();
        for (const auto& [place, count] : sampler->entries()) {
            if (count == 0)
                continue;
            const auto known = symbols_.name_of(place.rip);
            const auto name = known.empty() ? fmt::format("{:#x}", place.rip) : std::string{known};
            counts[place.user ? fmt::format("user;cr3={:#x};{}", place.cr3, name)
                              : fmt::format("kernel;{}", name)] += count;
        }
    }
    if (lost != 0)
        counts["lost"] = lost;
    std::string text;
    for (const auto& [stack, count] : counts)
        text += fmt::format("{} {}\n", stack, count);
    return text;
}

base::Result<void> Profile::write(std::uint64_t syscall_entry) {
    const auto all = text(syscall_entry);
    if (::ftruncate(file_.get(), 0) != 0 && errno != EINVAL) // a pipe has no length
        return base::fail_errno(errno, fmt::format("cannot write profile '{}'", path_));
    for (std::size_t done = 0; done < all.size();) {
        const auto n = ::write(file_.get(), all.data() + done, all.size() - done);
        if (n < 0)
            return base::fail_errno(errno, fmt::format("cannot write profile '{}'", path_));
        done += static_cast<std::size_t>(n);
    }
    return {};
}

} // namespace doppel::vmm
