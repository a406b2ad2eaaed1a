// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace doppel::block {

/// An operation on an image's metadata that ends half-way leaves memory and file apart: nothing is
/// written any more, and the next opener finds what a power cut would have left.
class AllOrNothing {
public:
    /// `broken`, of the node, says from then on that it is not written.
    explicit AllOrNothing(bool& broken) : broken_{broken} {}
    AllOrNothing(const AllOrNothing&) = delete;
    AllOrNothing& operator=(const AllOrNothing&) = delete;
    ~AllOrNothing() { broken_ = broken_ || !done_; }
    void done() { done_ = true; }

private:
    bool& broken_;
    bool done_ = false;
};

} // namespace doppel::block
