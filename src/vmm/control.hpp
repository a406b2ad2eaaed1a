// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The control socket of one VM: every request of api/control.hpp becomes a call on the VM.
#include <memory>

#include "api/control_name.hpp"
#include "api/control_server.hpp"
#include "base/result.hpp"
#include "vmm/vm.hpp"

namespace doppel::vmm {

/// Created and destroyed on the control thread; the VM outlives it.
class Control {
public:
    static base::Result<std::unique_ptr<Control>> serve(Vm& vm, api::ControlName name);

private:
    Control(Vm& vm, api::ControlName name);
    api::HttpResponse answer(const api::HttpRequest& request);

    Vm& vm_;
    api::ControlName name_;
    std::shared_ptr<Control*> alive_; // co-owned by the requests that are posted to the loop
    std::unique_ptr<api::ControlServer> server_;

public:
    ~Control();
    Control(const Control&) = delete;
    Control& operator=(const Control&) = delete;
};

} // namespace doppel::vmm
