// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Register and memory contents that make instructions show their edges.
#include <vector>

#include "tests/oracle/case.hpp"
#include "tests/oracle/random.hpp"

namespace doppel::oracle {

std::uint64_t interesting_integer(Random& random);
VectorState interesting_vectors(Random& random);
std::vector<MemoryImage> initial_memories();

} // namespace doppel::oracle
