// SPDX-License-Identifier: Apache-2.0
#include "block/qcow2/qcow2_node.hpp"
#include "block/test_power_cuts.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

constexpr std::uint64_t kSize = 96u << 10;

const std::vector<OptionValues> kAmended{{{"refcount_bits", "1"}},   {{"refcount_bits", "8"}},
                                         {{"refcount_bits", "16"}},  {{"refcount_bits", "64"}},
                                         {{"lazy_refcounts", "on"}}, {{"lazy_refcounts", "off"}},
                                         {{"compat", "0.10"}},       {{"compat", "1.1"}}};

const std::vector<test::Form> kForms{
    {"tiny", kSize, {{"cluster_size", "512"}}},
    {"usual", kSize, {{"cluster_size", "4k"}}},
    {"lazy", kSize, {{"cluster_size", "4k"}, {"lazy_refcounts", "on"}}},
    {"subclusters", kSize * 2, {{"cluster_size", "16k"}, {"extended_l2", "on"}}},
    {"old", kSize, {{"cluster_size", "1k"}, {"compat", "0.10"}}},
    {"amended", kSize, {{"cluster_size", "1k"}}, false, 0, true, kAmended},
    {"amended-backed",
     kSize,
     {{"cluster_size", "4k"}, {"backing_fmt", "raw"}},
     true,
     0,
     true,
     kAmended},
    {"wide", kSize, {{"cluster_size", "512"}, {"refcount_bits", "64"}}},
    {"narrow", kSize, {{"cluster_size", "1k"}, {"refcount_bits", "1"}}},
    {"bytes", kSize, {{"cluster_size", "2k"}, {"refcount_bits", "8"}}},
    {"zstd", kSize, {{"cluster_size", "4k"}, {"compression_type", "zstd"}}},
    {"raw-data", kSize, {{"cluster_size", "4k"}, {"data_file", "data"}, {"data_file_raw", "on"}}},
    {"backed-subclusters",
     kSize * 2,
     {{"cluster_size", "16k"}, {"extended_l2", "on"}, {"backing_fmt", "raw"}},
     true},
    {"backed", kSize, {{"cluster_size", "4k"}, {"backing_fmt", "raw"}}, true},
    {"data-file", kSize, {{"cluster_size", "4k"}, {"data_file", "data"}}},
    {"luks",
     kSize,
     {{"cluster_size", "4k"},
      {"encrypt.format", "luks"},
      {"encrypt.key-secret", "secret"},
      {"encrypt.iter-time", "10"}}},
};

} // namespace

TEST_CASE("qcow2: a power cut at any moment leaves an image without corruption or foreign data") {
    test::power_cuts(qcow2::format(), kForms);
}

TEST_CASE("qcow2: a disk that fails or fills up is an error, and what was flushed stays") {
    test::failing_disk(qcow2::format(), {"tiny", kSize, {{"cluster_size", "512"}}});
}
TEST_CASE("qcow2: after a resize that failed nothing foreign shows") {
    test::failing_resize(qcow2::format(), {"tiny", kSize, {{"cluster_size", "512"}}});
}
