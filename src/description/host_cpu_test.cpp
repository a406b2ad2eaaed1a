// SPDX-License-Identifier: Apache-2.0
#include "description/host_cpu.hpp"

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include <doctest/doctest.h>

#include "description/cpu_extensions.hpp"

using namespace doppel::description;

TEST_CASE("the model host runs here and is found by name") {
    const auto model = find_cpu_model("host");
    REQUIRE(model.has_value());
    CHECK(check_runs_here(*model).has_value());
    CHECK((model->lookup(7, 0).ebx & (1u << 16)) == 0); // no AVX-512
    CHECK((model->lookup(1, 0).ecx & (1u << 31)) != 0); // under a hypervisor
    CHECK(model->lookup(0, 0).eax >= 0xb);
}

TEST_CASE("an extension is taken away by its name") {
    const auto model = find_cpu_model("x86-64-v3,-SHA,-rdrand");
    REQUIRE(model.has_value());
    CHECK(model->name == "x86-64-v3,-sha,-rdrand");
    const auto whole = find_cpu_model("x86-64-v3").value();
    CHECK(model->lookup(7, 0).ebx == (whole.lookup(7, 0).ebx & ~(1u << 29)));
    CHECK(model->lookup(1, 0).ecx == (whole.lookup(1, 0).ecx & ~(1u << 30)));
    CHECK(model->lookup(7, 0).ecx == whole.lookup(7, 0).ecx);
    CHECK(find_cpu_model("x86-64-v1,-sha")->name == "x86-64-v1"); // has none
}

TEST_CASE("what cannot be taken away is refused with what can") {
    for (const char* wrong :
         {"x86-64-v3,-avx2", "x86-64-v3,sha", "x86-64-v3,", "x86-64-v3,-sha,,-aes", "host,-sha,"}) {
        CAPTURE(wrong);
        const auto refused = find_cpu_model(wrong);
        REQUIRE_FALSE(refused.has_value());
        CHECK(refused.error().text.find(wrong) != std::string::npos);
        CHECK(refused.error().hint.find("-pclmulqdq, -aes, ") != std::string::npos);
    }
    CHECK_FALSE(find_cpu_model("i4004,-sha").has_value());
}

TEST_CASE("the default is the highest level that this host has, with what it has beyond") {
    const auto model = find_cpu_model(default_cpu_model());
    REQUIRE(model.has_value());
    CHECK(model->name == default_cpu_model());
    CHECK(check_runs_here(*model).has_value());
    // An extension of the model itself that the host has, too, stays.
    const auto whole = find_cpu_model(model->name.substr(0, model->name.find(','))).value();
    for (const auto& extension : extensions())
        if (has(whole.lookup(extension.leaf, 0), extension) &&
            has(host_cpu_model().lookup(extension.leaf, 0), extension) && !extension.always_offered)
            CHECK(has(model->lookup(extension.leaf, 0), extension));
}

TEST_CASE("the best model of hosts without this and that") {
    const auto without = [](std::initializer_list<std::string_view> names) {
        return best_cpu_model([names](const Extension& extension) {
            return std::ranges::find(names, extension.name) == names.end();
        });
    };
    CHECK(without({}) == "x86-64-v3"); // engines do not offer v4
    CHECK(without({"SHA"}) == "x86-64-v3,-sha");
    CHECK(without({"SHA", "RDPID", "ADX"}) == "x86-64-v3,-adx,-sha,-rdpid");
    CHECK(without({"AVX2", "SHA"}) == "x86-64-v2");
    CHECK(without({"SSE3"}) == "x86-64-v1");
}

TEST_CASE("every 64-bit host runs x86-64-v1") {
    CHECK(check_runs_here(find_cpu_model("x86-64-v1").value()).has_value());
}

TEST_CASE("what engines do not offer is refused by name, with a way out") {
    const auto refused = check_runs_here(find_cpu_model("x86-64-v4").value());
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().text.find("needs AVX512F") != std::string::npos); // and nothing else
    CHECK(refused.error().hint.find("x86-64-v") != std::string::npos);
}

TEST_CASE("levels contain the ones below") {
    const auto models = cpu_models();
    for (std::size_t i = 1; i < models.size(); ++i)
        for (const std::uint32_t leaf : {1u, 7u, 0x8000'0001u}) {
            const auto low = models[i - 1].lookup(leaf, 0), high = models[i].lookup(leaf, 0);
            CHECK((low.ebx & ~high.ebx) == 0);
            CHECK((low.ecx & ~high.ecx) == 0);
            CHECK((low.edx & ~high.edx) == 0);
        }
}
