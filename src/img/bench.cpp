// SPDX-License-Identifier: Apache-2.0
#include <time.h>

#include <algorithm>
#include <array>

#include <fmt/core.h>

#include "block/aligned_memory.hpp"
#include "block/option_reader.hpp"
#include "img/images.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"c", "N", "number of requests [75000]"},
    Flag{"d", "N", "requests in flight [64]"},
    Flag{"s", "SIZE", "bytes per request [4096]"},
    Flag{"S", "SIZE", "distance from one request to the next [the size]"},
    Flag{"o", "OFFSET", "where to begin [0]"},
    Flag{"w", "", "write instead of reading"},
    Flag{"pattern", "BYTE", "what to write [0]"},
    Flag{"flush-interval", "N", "with -w: flush after every N requests [0: never]"},
    Flag{"no-drain", "", "with --flush-interval: requests go on while a flush is under way"},
    Flag{"i", "KIND",
         "how files are read and written: io_uring, threads, or native: what works [native]"},
    Flag{"n", "", "the same as -i native"},
    Flag{"t", "MODE", "cache mode [writeback]"},
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"q", "", "say nothing"},
    Flag{"U", "", "do not lock", "force-share"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

struct Plan {
    std::uint64_t count = 0;
    std::uint64_t depth = 0;
    std::uint64_t bytes = 0;
    std::uint64_t step = 0;
    std::uint64_t offset = 0;
    std::uint64_t flush_interval = 0;
    bool drain = true; // before a flush
    std::uint64_t pattern = 0;
    bool write = false;
};

Result<Plan> plan_of(const Arguments& arguments) {
    Plan plan;
    plan.count = DOPPEL_TRY(block::parse_size(arguments.get("c", "75000")));
    plan.depth = DOPPEL_TRY(block::parse_size(arguments.get("d", "64")));
    plan.bytes = DOPPEL_TRY(block::parse_size(arguments.get("s", "4096")));
    plan.step = DOPPEL_TRY(block::parse_size(arguments.get("S", std::to_string(plan.bytes))));
    plan.offset = DOPPEL_TRY(block::parse_size(arguments.get("o", "0")));
    plan.flush_interval = DOPPEL_TRY(block::parse_size(arguments.get("flush-interval", "0")));
    plan.pattern = DOPPEL_TRY(block::parse_size(arguments.get("pattern", "0")));
    plan.drain = !arguments.has("no-drain");
    plan.write = arguments.has("w");
    if (plan.depth == 0 || plan.depth > 4096 || plan.bytes == 0 || plan.bytes > (64u << 20) ||
        plan.pattern > 255)
        return base::fail(Errc::InvalidArgument,
                          "allowed are -d 1 to 4096, -s 1 to 64M, --pattern 0 to 255");
    if (!plan.drain && plan.flush_interval == 0)
        return base::fail(Errc::InvalidArgument, "--no-drain wants --flush-interval");
    if (!plan.write && (plan.flush_interval != 0 || arguments.has("pattern")))
        return base::fail(Errc::InvalidArgument, "--flush-interval and --pattern want -w");
    return plan;
}

class Run {
public:
    Run(block::Node& node, const Plan& plan) : node_{node}, plan_{plan}, at_{plan.offset} {}

    block::Task<void> all() {
        const auto step =
            plan_.drain && plan_.flush_interval != 0 ? plan_.flush_interval : plan_.count;
        while (started_ < plan_.count) {
            stop_at_ = std::min(plan_.count, started_ + step);
            DOPPEL_AWAIT_VOID(requests());
            if (step == plan_.flush_interval)
                DOPPEL_AWAIT_VOID(node_.flush());
        }
        co_return {};
    }

private:
    block::Task<void> requests() {
        std::vector<block::Task<void>> lanes;
        for (std::uint64_t i = 0; i < plan_.depth; ++i)
            lanes.push_back(lane());
        return block::all_of(std::move(lanes));
    }
    block::Task<void> lane() {
        block::AlignedMemory memory{plan_.bytes};
        std::ranges::fill(memory.span(), static_cast<std::byte>(plan_.pattern));
        const block::IoBuffer buffer{memory.span()};
        while (started_ < stop_at_) {
            ++started_;
            const auto offset = next_offset();
            if (plan_.write)
                DOPPEL_AWAIT_VOID(node_.write(offset, buffer, block::Durability::Cached));
            else
                DOPPEL_AWAIT_VOID(node_.read(offset, buffer));
            if (!plan_.drain && started_ % plan_.flush_interval == 0)
                DOPPEL_AWAIT_VOID(node_.flush());
        }
        co_return {};
    }
    std::uint64_t next_offset() {
        const auto last = node_.size() - plan_.bytes;
        const auto offset = at_ > last ? (last == 0 ? 0 : at_ % (last + 1)) : at_;
        at_ = offset + plan_.step;
        return offset;
    }

    block::Node& node_;
    const Plan& plan_;
    std::uint64_t at_;
    std::uint64_t started_ = 0;
    std::uint64_t stop_at_ = 0;
};

double now_s() {
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

Result<block::IoKind> parse_kind(const std::string& name) {
    if (name == "io_uring")
        return block::IoKind::IoUring;
    if (name == "threads")
        return block::IoKind::Threads;
    if (name == "native")
        return block::IoKind::Auto;
    return base::fail(Errc::InvalidArgument, fmt::format("-i is '{}'", name),
                      "Use io_uring, threads or native.");
}

Result<int> run(Session& outer) {
    const auto& arguments = outer.arguments;
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE"));
    const auto plan = DOPPEL_TRY(plan_of(arguments));
    const auto kind = DOPPEL_TRY(parse_kind(arguments.get("i", "native")));
    const auto context = DOPPEL_TRY(block::IoContext::create(outer.context.loop(), kind));
    Session session{*context, arguments, outer.objects, outer.name};
    const auto access = plan.write ? block::Access::ReadWrite : block::Access::ReadOnly;
    auto image =
        DOPPEL_TRY(open_named(session, arguments.positional()[0], open_flags(arguments, access)));
    auto& node = *image.node;
    Closing closing{session, node};
    if (node.size() < plan.bytes)
        return base::fail(Errc::InvalidArgument, fmt::format("the image has {} bytes, a request {}",
                                                             node.size(), plan.bytes));
    if (!arguments.has("q"))
        fmt::print("Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, "
                   "step size {}, by {})\n",
                   plan.count, plan.write ? "write" : "read", plan.bytes, plan.depth, plan.offset,
                   plan.step, context->engine().name());
    const auto start = now_s();
    Run requests{node, plan};
    DOPPEL_TRY_VOID(context->wait(requests.all()));
    const auto seconds = now_s() - start;
    DOPPEL_TRY_VOID(closing.close());
    if (!arguments.has("q"))
        fmt::print("Run completed in {:.3f} seconds.\n", seconds);
    return 0;
}

constexpr Command kCommand{"bench",
                           "[-c N] [-d N] [-s SIZE] [-w] FILE",
                           "measure how fast an image is read or written",
                           {},
                           kFlags,
                           run};

} // namespace

const Command& bench_command() { return kCommand; }

} // namespace doppel::img
