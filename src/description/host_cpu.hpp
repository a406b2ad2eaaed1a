// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What this host's CPU means for CPU models. Any thread.
#include <string>

#include "base/result.hpp"
#include "description/cpu_model.hpp"

namespace doppel::description {

/// The model "host": the host's own CPUID, cut to what the engines do. Not frozen: a VM with it can
/// only be continued on a like host.
CpuModel host_cpu_model();

/// Guest instructions run on the host's CPU, so it must have every instruction-set extension of the
/// model. Errors: Unsupported, naming what is missing and the best model that would do.
base::Result<void> check_runs_here(const CpuModel& model);

/// The highest of the frozen models that this host runs once those extensions are left out that the
/// host lacks and no level asks for. A name for find_cpu_model(), which means the same everywhere.
std::string default_cpu_model();

} // namespace doppel::description
