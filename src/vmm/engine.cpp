// SPDX-License-Identifier: Apache-2.0
#include "vmm/engine.hpp"

namespace doppel::vmm {

base::Result<std::unique_ptr<EngineFactory>> create_engine(const description::Machine& machine,
                                                           memory::GuestMemory&) {
    return base::fail(base::Errc::Unsupported, std::string{"engine '"} +
                                                   description::engine_name(machine.engine) +
                                                   "' is not built in");
}

} // namespace doppel::vmm
