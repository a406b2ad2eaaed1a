// SPDX-License-Identifier: Apache-2.0
#include "apps/doppel/vm_save.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

#include <fmt/core.h>

#include "api/control.hpp"
#include "api/control_client.hpp"
#include "description/machine.hpp"

namespace doppel::cli {

using api::ControlClient;
using base::Errc;
using base::Result;

namespace {

/// One line that is written over and over; nothing when stderr is no terminal.
class Progress {
public:
    ~Progress() {
        if (shown_)
            std::fputs("\r\x1b[K", stderr);
    }
    void show(const api::Job& job) {
        if (!is_terminal_ || job.total_bytes == 0)
            return;
        shown_ = true;
        std::fprintf(stderr, "\rsaving: %3u %% of %s\x1b[K",
                     static_cast<unsigned>(job.done_bytes * 100 / job.total_bytes),
                     description::format_size(job.total_bytes).c_str());
    }

private:
    const bool is_terminal_ = ::isatty(STDERR_FILENO) == 1;
    bool shown_ = false;
};

Result<void> wait_for(ControlClient& client, api::Job job) {
    Progress progress;
    constexpr std::chrono::milliseconds kFirst{5}, kSlowest{200};
    for (auto pause = kFirst; job.state == "running"; pause = std::min(pause * 2, kSlowest)) {
        progress.show(job);
        std::this_thread::sleep_for(pause);
        const auto body = DOPPEL_TRY(client.get(fmt::format("/v1/jobs/{}", job.id)));
        job = DOPPEL_TRY(api::from_json<api::Job>(body));
    }
    if (job.state != "done")
        return base::fail(Errc::Io, job.error);
    return {};
}

} // namespace

Result<void> save(const std::string& name, const std::string& file, bool stop) {
    auto client = DOPPEL_TRY(ControlClient::connect(name));
    std::error_code error;
    const auto path = std::filesystem::absolute(file, error);
    if (error)
        return base::fail_errno(error.value(), fmt::format("find file '{}'", file));
    const api::SaveRequest request{.path = path.string(), .keep_paused = stop};
    const auto body = DOPPEL_TRY(client.post("/v1/vm/save", api::to_json(request)));
    const auto job = DOPPEL_TRY(api::from_json<api::Job>(body));
    DOPPEL_TRY_VOID(wait_for(client, job));
    if (!stop)
        return {};
    // A VM that ends does not always finish its last answer.
    if (const auto asked = client.post("/v1/vm/stop"); !asked && asked.error().code != Errc::Io)
        return std::unexpected(asked.error());
    return {};
}

} // namespace doppel::cli
