// SPDX-License-Identifier: Apache-2.0
#pragma once
/// OVF packages as a row of the format table: what is in them is of any other format of it. Any
/// thread.
#include "block/format.hpp"

namespace doppel::block {

const Format& ova_format();

} // namespace doppel::block
