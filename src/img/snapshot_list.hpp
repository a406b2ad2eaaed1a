// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The internal snapshots of an image, for people and for programs. Any thread.
#include <string>
#include <vector>

#include "block/image_node.hpp"
#include "img/json.hpp"

namespace doppel::img {

std::string snapshots_text(const std::vector<block::SnapshotInfo>& snapshots);
void snapshots_json(Json& json, const std::vector<block::SnapshotInfo>& snapshots);

} // namespace doppel::img
