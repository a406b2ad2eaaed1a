// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The oracle: runs cases on the real CPU, in a child process of its own that a wild case may kill.
///
/// The child lives in its signal handler: the kernel hands it the registers after each case in the
/// signal frame, it notes them, writes those of the next case in their place and returns from the
/// signal, which starts it. So a case costs one signal, and every way to end is the same.
#include <memory>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "tests/oracle/case.hpp"

namespace doppel::oracle {

/// Owner thread only.
class HostCpu {
public:
    static constexpr std::size_t kBatch = 256;

    /// `images` are the initial memories that cases name. Errors: of the system calls.
    static base::Result<std::unique_ptr<HostCpu>> create(std::span<const MemoryImage> images);
    ~HostCpu();
    HostCpu(const HostCpu&) = delete;
    HostCpu& operator=(const HostCpu&) = delete;

    /// At most kBatch cases. The answers stand until the next call.
    struct Answers {
        const Outcome* outcomes;
        const MemoryImage* memories;
    };
    base::Result<Answers> run(std::span<const Case> cases);

    struct Arena; // shared with the child
private:
    HostCpu() = default;
    base::Result<void> start_child();
    void end_child();
    bool wait_for_child();

    Arena* arena_ = nullptr;
    std::size_t arena_bytes_ = 0;
    int go_[2] = {-1, -1}; // pipes
    int done_[2] = {-1, -1};
    int child_ = -1;
};

} // namespace doppel::oracle
