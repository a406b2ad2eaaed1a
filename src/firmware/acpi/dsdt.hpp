// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "firmware/acpi/aml.hpp"
#include "firmware/acpi/tables.hpp"

namespace doppel::firmware::acpi {

/// The definition block of the DSDT, without its table header.
Bytes dsdt_body(const AcpiBoard& board);

} // namespace doppel::firmware::acpi
