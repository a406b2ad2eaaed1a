// SPDX-License-Identifier: Apache-2.0
#pragma once
/// An image file as it is once its log has been replayed. Owner thread only.
#include <memory>

#include "block/node.hpp"
#include "block/vhdx/log.hpp"

namespace doppel::block::vhdx {

/// Writes what the log says into the file.
Task<void> replay_into(Node& file, const Replay& replay);

/// For readers: the file with what the log says in front of it.
std::unique_ptr<Node> replayed_view(std::unique_ptr<Node> file, Replay replay);

} // namespace doppel::block::vhdx
