// SPDX-License-Identifier: Apache-2.0
#include "vmm/control.hpp"

#include <array>
#include <charconv>
#include <string_view>

#include <fmt/core.h>

#include "api/control.hpp"
#include "base/event_loop.hpp"

namespace doppel::vmm {

using api::HttpRequest;
using api::HttpResponse;
using base::Errc;
using base::Result;

namespace {

constexpr unsigned kOk = 200, kAccepted = 202, kNoContent = 204, kNotFound = 404, kNotAllowed = 405;

HttpResponse failed(const base::Error& error) {
    return {api::http_status(error.code), api::to_json(error)};
}

HttpResponse done(const Result<void>& result) {
    return result ? HttpResponse{kNoContent, ""} : failed(result.error());
}

HttpResponse get_vm(Vm& vm, const HttpRequest&) { return {kOk, api::to_json(vm.status())}; }

HttpResponse get_stats(Vm& vm, const HttpRequest&) {
    return {kOk, api::to_json(api::VmStatistics{vm.statistics()})};
}

HttpResponse post_pause(Vm& vm, const HttpRequest&) {
    vm.pause();
    return done({});
}

HttpResponse post_resume(Vm& vm, const HttpRequest&) { return done(vm.resume()); }

HttpResponse post_power_button(Vm& vm, const HttpRequest&) {
    vm.press_power_button();
    return done({});
}

HttpResponse post_stop(Vm& vm, const HttpRequest&) {
    vm.stop();
    return done({});
}

HttpResponse post_save(Vm& vm, const HttpRequest& request) {
    const auto wanted = api::from_json<api::SaveRequest>(request.body);
    if (!wanted)
        return failed(wanted.error());
    const auto job = vm.save(*wanted);
    return job ? HttpResponse{kAccepted, api::to_json(*job)} : failed(job.error());
}

struct Route {
    const char* method;
    const char* target;
    HttpResponse (*answer)(Vm& vm, const HttpRequest& request);
};

constexpr std::array kRoutes{
    Route{"GET", "/v1/vm", get_vm},
    Route{"GET", "/v1/vm/stats", get_stats},
    Route{"POST", "/v1/vm/pause", post_pause},
    Route{"POST", "/v1/vm/resume", post_resume},
    Route{"POST", "/v1/vm/power-button", post_power_button},
    Route{"POST", "/v1/vm/stop", post_stop},
    Route{"POST", "/v1/vm/save", post_save},
};

HttpResponse no_such(const HttpRequest& request) {
    return {kNotFound,
            api::to_json(base::Error{
                Errc::NotFound, 0, fmt::format("there is no '{}'", request.target), {}, {}})};
}

constexpr std::string_view kJobs = "/v1/jobs/";

HttpResponse get_job(Vm& vm, const HttpRequest& request) {
    const auto number = std::string_view{request.target}.substr(kJobs.size());
    std::uint64_t id = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), id);
    const auto job =
        error == std::errc{} && end == number.data() + number.size() ? vm.job(id) : std::nullopt;
    return job ? HttpResponse{kOk, api::to_json(*job)} : no_such(request);
}

} // namespace

Control::Control(Vm& vm, api::ControlName name)
    : vm_{vm}, name_{std::move(name)}, alive_{std::make_shared<Control*>(this)} {}

Control::~Control() {
    server_.reset();
    *alive_ = nullptr;
}

Result<std::unique_ptr<Control>> Control::serve(Vm& vm, api::ControlName name) {
    auto control = std::unique_ptr<Control>{new Control{vm, std::move(name)}};
    control->server_ = DOPPEL_TRY(api::ControlServer::start(
        control->name_.take_listener(),
        [loop = &vm.loop(), alive = control->alive_](HttpRequest request, auto reply) {
            loop->post([alive, reply, asked = std::move(request)] {
                if (*alive != nullptr)
                    reply((*alive)->answer(asked));
            });
        }));
    return control;
}

HttpResponse Control::answer(const HttpRequest& request) {
    bool is_known = request.target.starts_with(kJobs);
    if (is_known && request.method == "GET")
        return get_job(vm_, request);
    for (const auto& route : kRoutes) {
        if (request.target != route.target)
            continue;
        if (request.method == route.method)
            return route.answer(vm_, request);
        is_known = true;
    }
    if (!is_known)
        return no_such(request);
    return {kNotAllowed, api::to_json(base::Error{Errc::InvalidArgument,
                                                  0,
                                                  fmt::format("'{}' cannot be done to '{}'",
                                                              request.method, request.target),
                                                  {},
                                                  {}})};
}

} // namespace doppel::vmm
