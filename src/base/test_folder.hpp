// SPDX-License-Identifier: Apache-2.0
#pragma once
/// For tests: a new folder, which goes away with all that is in it.
#include <ftw.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/verify.hpp"

namespace doppel::base {

class TestFolder {
public:
    /// `name` tells whose it is. `where`: a folder; else TMPDIR, or /tmp.
    explicit TestFolder(std::string_view name, const char* where = nullptr) {
        if (where == nullptr)
            where = std::getenv("TMPDIR");
        path_ = where == nullptr ? "/tmp" : where;
        // mkdtemp(3) puts what makes it new in place of the last six.
        path_.append("/").append(name).append("-XXXXXX");
        DOPPEL_VERIFY(::mkdtemp(path_.data()) != nullptr, "a new folder for a test");
    }
    ~TestFolder() {
        const auto remove = [](const char* path, const struct stat*, int, struct FTW*) {
            return std::remove(path);
        };
        ::nftw(path_.c_str(), remove, 16, FTW_DEPTH | FTW_PHYS);
    }
    TestFolder(const TestFolder&) = delete;
    TestFolder& operator=(const TestFolder&) = delete;

    const std::string& path() const { return path_; }
    /// Of a file in it.
    std::string operator/(std::string_view file) const {
        return std::string{path_}.append("/").append(file);
    }

private:
    std::string path_;
};

} // namespace doppel::base
