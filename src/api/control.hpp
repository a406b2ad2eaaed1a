// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What is said over the control socket of a VM: HTTP/1.1 with JSON, below /v1. Types and codec;
/// any thread.
///
///     GET  /v1/vm                what it is and whether it runs    VmStatus
///     GET  /v1/vm/stats          counters                          VmStatistics
///     POST /v1/vm/pause          returns when the VM stands still
///     POST /v1/vm/resume
///     POST /v1/vm/power-button   the guest is told, and does what it likes
///     POST /v1/vm/stop           ends the VM at once, without asking the guest
///     POST /v1/vm/save           SaveRequest; 202 with a Job
///     GET  /v1/jobs/N            Job
///
/// An error's body is {"code", "message"}: the message is a sentence for people.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace doppel::api {

struct VmStatus {
    std::string name;
    std::string state; // running, paused, saving
    std::string board;
    std::string engine;
    std::string cpu_model;
    std::uint64_t cpus = 0;
    std::uint64_t memory_bytes = 0;
    std::uint64_t pid = 0;
    std::uint64_t vm_time_ns = 0; // stands still while paused
    /// Host ports that lead into the guest, of all its networks, as description::format_forward().
    std::vector<std::string> forwards;
};

struct VmStatistics {
    std::string text; // as `doppel run --stats` prints: one "name: value" per line
};

struct SaveRequest {
    std::string path;         // absolute
    bool keep_paused = false; // the VM does not go on afterwards
};

/// Work that takes long.
struct Job {
    std::uint64_t id = 0;
    std::string kind;  // save
    std::string state; // running, done, failed
    std::uint64_t done_bytes = 0;
    std::uint64_t total_bytes = 0;
    std::string error; // of a failed job: a sentence for people
};

std::string to_json(const VmStatus& status);
std::string to_json(const VmStatistics& statistics);
std::string to_json(const SaveRequest& request);
std::string to_json(const Job& job);
/// The body of an error.
std::string to_json(const base::Error& error);

/// Unknown, missing and mistyped members are errors that name them.
template <typename T> base::Result<T> from_json(std::string_view text);
template <> base::Result<VmStatus> from_json<VmStatus>(std::string_view text);
template <> base::Result<VmStatistics> from_json<VmStatistics>(std::string_view text);
template <> base::Result<SaveRequest> from_json<SaveRequest>(std::string_view text);
template <> base::Result<Job> from_json<Job>(std::string_view text);
/// The error that such a body tells of.
base::Error error_from_json(std::string_view text);

/// HTTP status for an error, and back.
unsigned http_status(base::Errc code);

} // namespace doppel::api
