// SPDX-License-Identifier: Apache-2.0
#pragma once
/// VectorState in and out of XSAVE's standard format.
#include <cstddef>

#include "tests/oracle/case.hpp"

namespace doppel::oracle {

/// Writes the legacy region (not its reserved end), XSTATE_BV = x87, SSE, AVX, and YMM_Hi128.
void put_vectors(std::byte* xsave, const VectorState& vectors);
VectorState get_vectors(const std::byte* xsave);

} // namespace doppel::oracle
