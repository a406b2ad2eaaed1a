// SPDX-License-Identifier: Apache-2.0
/// libslirp thinks in rounds of poll(2): it is asked what to wait for (fill), and then told what
/// was seen (poll). A round is begun from the loop's poller, right before the loop sleeps, so that
/// what the guest has sent by then is part of it.
///
/// While the card takes no frames, no round is begun: sockets are not read, and TCP holds the other
/// side back. Frames go through a queue because libslirp answers on the stack of send(), where the
/// card must not be called.
#include "net/user/user_network.hpp"

#include <arpa/inet.h>
#include <slirp/libslirp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>

#include <fmt/core.h>

#include "base/log.hpp"
#include "base/unique_fd.hpp"
#include "net/frame_queue.hpp"
#include "net/user/watched_fds.hpp"

namespace doppel::net {

using base::Errc;
using base::Error;
using base::Result;

namespace {

constexpr Ipv4 kHostNumber = 2, kNameServerNumber = 3, kFirstLease = 15; // within the subnet
constexpr std::int64_t kNever = INT64_MAX;

constexpr std::array<std::pair<int, std::uint32_t>, 5> kEvents{{
    {SLIRP_POLL_IN, EPOLLIN},
    {SLIRP_POLL_OUT, EPOLLOUT},
    {SLIRP_POLL_PRI, EPOLLPRI},
    {SLIRP_POLL_ERR, EPOLLERR},
    {SLIRP_POLL_HUP, EPOLLHUP},
}};

std::uint32_t to_epoll(int events) {
    std::uint32_t out = 0;
    for (const auto& [slirp, epoll] : kEvents)
        out |= (events & slirp) != 0 ? epoll : 0;
    return out;
}

int from_epoll(std::uint32_t events) {
    int out = 0;
    for (const auto& [slirp, epoll] : kEvents)
        out |= (events & epoll) != 0 ? slirp : 0;
    return out;
}

std::int64_t now_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

std::string format_ipv4(Ipv4 value) {
    return fmt::format("{}.{}.{}.{}", value >> 24, value >> 16 & 0xff, value >> 8 & 0xff,
                       value & 0xff);
}

in_addr address(Ipv4 value) { return {htonl(value)}; }

sockaddr_in socket_address(Ipv4 value, std::uint16_t port) {
    sockaddr_in out{};
    out.sin_family = AF_INET;
    out.sin_port = htons(port);
    out.sin_addr = address(value);
    return out;
}

/// libslirp binds UDP ports in a way that lets two share one; we do not.
int udp_port_error(const Forward& forward) {
    const base::UniqueFd probe{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
    const auto place = socket_address(forward.host_address, forward.host_port);
    const bool bound =
        ::bind(probe.get(), reinterpret_cast<const sockaddr*>(&place), sizeof place) == 0;
    return bound ? 0 : errno;
}

std::unexpected<Error> forward_error(const Forward& forward, int os_errno) {
    const auto place = fmt::format("{}:{}", format_ipv4(forward.host_address), forward.host_port);
    auto text = fmt::format("cannot forward {}", place);
    if (os_errno == EADDRINUSE)
        return std::unexpected(
            Error{Errc::Busy, os_errno, std::move(text), {}, "give another port of the host"});
    if (os_errno == EADDRNOTAVAIL)
        return std::unexpected(Error{Errc::InvalidArgument,
                                     os_errno,
                                     std::move(text),
                                     {},
                                     "give an address of the host, or 0.0.0.0 for all of them"});
    if (os_errno == EACCES)
        return std::unexpected(
            Error{Errc::PermissionDenied, os_errno, std::move(text), {}, "give a port above 1023"});
    return base::fail_errno(os_errno, std::move(text));
}

} // namespace

struct UserNetwork::Impl {
    struct Timer {
        SlirpTimerId id;
        void* opaque;
        std::int64_t deadline_ns = kNever;
    };

    Impl(base::EventLoop& l, UserOptions o)
        : loop{l}, options{std::move(o)}, fds{l, [this] { has_events = true; }} {}
    ~Impl() {
        loop.remove_poll(poll_number);
        if (slirp != nullptr)
            ::slirp_cleanup(slirp);
        if (timer_fd)
            loop.remove(timer_fd.get());
    }
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;

    Result<void> start();
    Result<void> add(const Forward& forward);
    SlirpConfig config() const;
    Ipv4 number(Ipv4 host) const { return options.network | host; }

    bool turn();
    void poll_slirp();
    void fill_slirp();
    void fire_timers();
    void wake_at(std::int64_t deadline_ns);

    // --- what libslirp calls ---
    static Impl& of(void* opaque) { return *static_cast<Impl*>(opaque); }
    static SlirpCb callbacks();
    static ssize_t send_packet(const void* bytes, std::size_t count, void* opaque);
    static void* new_timer(SlirpTimerId id, void* timer_opaque, void* opaque);
    static void free_timer(void* timer, void* opaque);
    static void set_timer(void* timer, std::int64_t deadline_ms, void* opaque);

    base::EventLoop& loop;
    const UserOptions options;
    const SlirpCb slirp_calls = callbacks();
    WatchedFds fds;
    std::uint64_t poll_number = 0;
    base::UniqueFd timer_fd;
    std::int64_t armed_ns = kNever; // what timer_fd is set to
    std::vector<std::unique_ptr<Timer>> timers;
    FrameQueue queue; // to the card
    FrameReceiver* receiver = nullptr;
    bool has_events = false; // a descriptor or the timer is due
    bool is_outdated = true; // what we wait for is not what libslirp would
    bool is_stalled = false; // the card has not taken all
    Slirp* slirp = nullptr;
};

// --- construction -----------------------------------------------------------------------------

SlirpConfig UserNetwork::Impl::config() const {
    SlirpConfig config{};
    config.version = SLIRP_CONFIG_VERSION_MAX;
    config.restricted = options.restricted;
    config.in_enabled = true;
    config.vnetwork = address(options.network);
    config.vnetmask = address(options.mask);
    config.vhost = address(number(kHostNumber));
    config.vnameserver = address(number(kNameServerNumber));
    config.vdhcp_start = address(number(kFirstLease));
    config.vhostname = options.hostname.empty() ? nullptr : options.hostname.c_str();
    config.if_mtu = config.if_mru = options.mtu;
    config.in6_enabled = options.has_ipv6;
    ::inet_pton(AF_INET6, "fec0::", &config.vprefix_addr6);
    config.vprefix_len = 64;
    ::inet_pton(AF_INET6, "fec0::2", &config.vhost6);
    ::inet_pton(AF_INET6, "fec0::3", &config.vnameserver6);
    return config;
}

Result<void> UserNetwork::Impl::start() {
    timer_fd.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    if (!timer_fd)
        return base::fail_errno(errno, "create a timer");
    DOPPEL_TRY_VOID(loop.add(timer_fd.get(), EPOLLIN, [this](auto) {
        std::uint64_t expirations = 0;
        [[maybe_unused]] const auto count =
            ::read(timer_fd.get(), &expirations, sizeof expirations);
        armed_ns = kNever;
        has_events = true;
    }));
    const auto wanted = config();
    slirp = ::slirp_new(&wanted, &slirp_calls, this);
    if (slirp == nullptr)
        return base::fail(Errc::Internal, "libslirp does not start");
    for (const auto& forward : options.forwards)
        DOPPEL_TRY_VOID(add(forward));
    poll_number = loop.add_poll([this] { return turn(); });
    return {};
}

Result<void> UserNetwork::Impl::add(const Forward& forward) {
    const auto guest = forward.guest_address == 0 ? number(kFirstLease) : forward.guest_address;
    if ((guest & options.mask) != options.network)
        return base::fail(
            Errc::InvalidArgument,
            fmt::format("cannot forward to {}, which is not in the guest's network {}",
                        format_ipv4(guest), format_ipv4(options.network)));
    const bool is_udp = forward.protocol == Forward::Protocol::Udp;
    if (const int error = is_udp ? udp_port_error(forward) : 0; error != 0)
        return forward_error(forward, error);
    if (::slirp_add_hostfwd(slirp, is_udp, address(forward.host_address), forward.host_port,
                            address(guest), forward.guest_port) != 0)
        return forward_error(forward, errno);
    return {};
}

// --- a round ----------------------------------------------------------------------------------

/// From the loop's poller; whether it did something.
bool UserNetwork::Impl::turn() {
    const bool has_round = has_events && !is_stalled;
    if (has_round)
        poll_slirp();
    bool delivered = false;
    if (!queue.empty() && !is_stalled && receiver != nullptr) {
        delivered = queue.offer(*receiver);
        is_stalled = !queue.empty();
        if (is_stalled)
            fds.watch_none();
        is_outdated = true;
    }
    if (is_outdated && !is_stalled)
        fill_slirp();
    return has_round || delivered;
}

void UserNetwork::Impl::poll_slirp() {
    has_events = false;
    ::slirp_pollfds_poll(
        slirp, 0,
        [](int place, void* opaque) {
            return from_epoll(of(opaque).fds.seen(static_cast<std::size_t>(place)));
        },
        this);
    fire_timers();
    is_outdated = true;
}

void UserNetwork::Impl::fill_slirp() {
    is_outdated = false;
    std::uint32_t timeout_ms = UINT32_MAX;
    fds.begin();
    ::slirp_pollfds_fill(
        slirp, &timeout_ms,
        [](int fd, int events, void* opaque) {
            return static_cast<int>(of(opaque).fds.add(fd, to_epoll(events)));
        },
        this);
    fds.commit();
    std::int64_t deadline = kNever;
    if (timeout_ms != UINT32_MAX)
        deadline = now_ns() + std::int64_t{timeout_ms} * 1'000'000;
    for (const auto& timer : timers)
        deadline = std::min(deadline, timer->deadline_ns);
    wake_at(deadline);
}

void UserNetwork::Impl::fire_timers() {
    for (std::size_t i = 0; i < timers.size(); ++i) { // a timer may add another
        auto& timer = *timers[i];
        if (timer.deadline_ns > now_ns())
            continue;
        timer.deadline_ns = kNever;
        ::slirp_handle_timer(slirp, timer.id, timer.opaque);
    }
}

/// An earlier alarm stays: it does no harm, and most are.
void UserNetwork::Impl::wake_at(std::int64_t deadline_ns) {
    if (deadline_ns >= armed_ns)
        return;
    armed_ns = deadline_ns;
    itimerspec when{};
    when.it_value.tv_sec = deadline_ns / 1'000'000'000;
    when.it_value.tv_nsec = deadline_ns % 1'000'000'000;
    ::timerfd_settime(timer_fd.get(), TFD_TIMER_ABSTIME, &when, nullptr);
}

// --- what libslirp calls ----------------------------------------------------------------------

SlirpCb UserNetwork::Impl::callbacks() {
    SlirpCb calls{};
    calls.send_packet = send_packet;
    calls.guest_error = [](const char* message, void*) {
        static base::RateLimit limit{10};
        if (limit.allow())
            base::log_warning("user network: {}", message);
    };
    calls.clock_get_ns = [](void*) { return now_ns(); };
    calls.timer_new_opaque = new_timer;
    calls.timer_free = free_timer;
    calls.timer_mod = set_timer;
    calls.register_poll_fd = [](int, void*) {};
    calls.unregister_poll_fd = [](int fd, void* opaque) { of(opaque).fds.forget(fd); };
    calls.notify = [](void* opaque) { of(opaque).is_outdated = true; };
    return calls;
}

ssize_t UserNetwork::Impl::send_packet(const void* bytes, std::size_t count, void* opaque) {
    auto& self = of(opaque);
    const bool merges = self.receiver != nullptr && self.receiver->takes_merged_segments();
    self.queue.push({static_cast<const std::byte*>(bytes), count},
                    merges ? FrameQueue::Merge::Segments : FrameQueue::Merge::No);
    return static_cast<ssize_t>(count); // a lost frame is TCP's to repeat
}

void* UserNetwork::Impl::new_timer(SlirpTimerId id, void* timer_opaque, void* opaque) {
    return of(opaque).timers.emplace_back(new Timer{id, timer_opaque}).get();
}

void UserNetwork::Impl::free_timer(void* timer, void* opaque) {
    std::erase_if(of(opaque).timers, [timer](const auto& one) { return one.get() == timer; });
}

void UserNetwork::Impl::set_timer(void* timer, std::int64_t deadline_ms, void* opaque) {
    static_cast<Timer*>(timer)->deadline_ns = deadline_ms * 1'000'000;
    of(opaque).is_outdated = true;
}

// --- the card's side --------------------------------------------------------------------------

Result<std::unique_ptr<UserNetwork>> UserNetwork::create(base::EventLoop& loop,
                                                         const UserOptions& options) {
    auto impl = std::make_unique<Impl>(loop, options);
    DOPPEL_TRY_VOID(impl->start());
    return std::unique_ptr<UserNetwork>{new UserNetwork{std::move(impl)}};
}

void UserNetwork::set_receiver(FrameReceiver* receiver) noexcept { impl_->receiver = receiver; }

void UserNetwork::receiver_ready() noexcept { impl_->is_stalled = false; }

void UserNetwork::send(Frame frame) noexcept {
    if (frame.size() > kMaxFrameBytes)
        return;
    ::slirp_input(impl_->slirp, reinterpret_cast<const std::uint8_t*>(frame.data()),
                  static_cast<int>(frame.size()));
    impl_->is_outdated = true;
}

UserNetwork::UserNetwork(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
UserNetwork::~UserNetwork() = default;

} // namespace doppel::net
