// SPDX-License-Identifier: Apache-2.0
/// JSON (RFC 8259) as a flat list of options: what follows "json:" in the name of an image.
#include <algorithm>
#include <charconv>

#include <fmt/core.h>

#include "img/image_name.hpp"

namespace doppel::img {

namespace {

constexpr unsigned kMaxDepth = 32;

class Reader {
public:
    explicit Reader(std::string_view text) : text_{text} {}

    Result<block::OptionValues> read() {
        skip_space();
        if (peek() != '{')
            return wrong("an object, { … },");
        DOPPEL_TRY_VOID(value({}, 0));
        skip_space();
        if (at_ != text_.size())
            return wrong("the end");
        return std::move(out_);
    }

private:
    std::unexpected<Error> wrong(std::string_view wanted) const {
        return base::fail(Errc::InvalidArgument,
                          fmt::format("character {} should be {} and is '{}'", at_ + 1, wanted,
                                      text_.substr(at_, 10)));
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void skip_space() {
        while (at_ < text_.size() && std::string_view{" \t\r\n"}.find(text_[at_]) < 4)
            ++at_;
    }
    bool take(char wanted) {
        skip_space();
        const bool there = peek() == wanted;
        at_ += there;
        return there;
    }

    Result<void> value(const std::string& key, unsigned depth) {
        skip_space();
        if (depth > kMaxDepth)
            return wrong("no deeper");
        switch (peek()) {
        case '{': return object(key, depth);
        case '[': return array(key, depth);
        case '"': out_[key] = DOPPEL_TRY(string()); return {};
        default: return word(key);
        }
    }
    Result<void> object(const std::string& key, unsigned depth) {
        take('{');
        if (take('}'))
            return {};
        do {
            skip_space();
            if (peek() != '"')
                return wrong("a member's name");
            const auto name = DOPPEL_TRY(string());
            if (!take(':'))
                return wrong("':'");
            DOPPEL_TRY_VOID(value(key.empty() ? name : key + "." + name, depth + 1));
        } while (take(','));
        return take('}') ? Result<void>{} : wrong("',' or '}'");
    }
    Result<void> array(const std::string& key, unsigned depth) {
        take('[');
        if (take(']'))
            return {};
        unsigned index = 0;
        do
            DOPPEL_TRY_VOID(value(fmt::format("{}.{}", key, index++), depth + 1));
        while (take(','));
        return take(']') ? Result<void>{} : wrong("',' or ']'");
    }
    Result<void> word(const std::string& key) {
        const auto end = std::min(text_.find_first_of(" \t\r\n,]}", at_), text_.size());
        const auto text = text_.substr(at_, end - at_);
        if (text == "true" || text == "false") {
            out_[key] = text == "true" ? "on" : "off";
        } else {
            double number = 0;
            const auto [stop, error] =
                std::from_chars(text.data(), text.data() + text.size(), number);
            if (text.empty() || error != std::errc{} || stop != text.data() + text.size())
                return wrong("a value");
            out_[key] = text;
        }
        at_ = end;
        return {};
    }
    Result<std::string> string() {
        std::string text;
        for (++at_; peek() != '"'; ++at_) {
            if (at_ >= text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20)
                return wrong("'\"'");
            if (text_[at_] != '\\') {
                text += text_[at_];
                continue;
            }
            ++at_;
            DOPPEL_TRY_VOID(escape(text));
        }
        ++at_;
        return text;
    }
    Result<void> escape(std::string& text) {
        constexpr std::string_view kNames = "\"\\/bfnrt";
        constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
        const auto found = kNames.find(peek());
        if (found != std::string_view::npos) {
            text += kMeanings[found];
            return {};
        }
        unsigned code = 0;
        const auto digits = text_.substr(std::min(at_ + 1, text_.size()), 4);
        const auto [stop, error] =
            std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
        // One byte is enough for what stands in names of files and secrets escaped.
        if (peek() != 'u' || digits.size() != 4 || stop != digits.data() + 4 || code == 0 ||
            code > 0x7f)
            return wrong("an escape (\\u0001 to \\u007f, others as they are)");
        text += static_cast<char>(code);
        at_ += 4;
        return {};
    }

    std::string_view text_;
    std::size_t at_ = 0;
    block::OptionValues out_;
};

} // namespace

Result<block::OptionValues> flatten_json(std::string_view text) { return Reader{text}.read(); }

} // namespace doppel::img
