// SPDX-License-Identifier: Apache-2.0
/// fmt's own functions, compiled into this program: its shared library brings along libstdc++'s,
/// and the two take longer to load than most commands to run. Which templates the headers leave to
/// the library is fmt 9's decision; another version uses the shared library as before.
#include <fmt/format-inl.h>

#if FMT_VERSION / 10000 == 9

namespace fmt {
inline namespace v9 {
namespace detail {

template auto dragonbox::to_decimal(float x) noexcept -> dragonbox::decimal_fp<float>;
template auto dragonbox::to_decimal(double x) noexcept -> dragonbox::decimal_fp<double>;
template auto thousands_sep_impl(locale_ref where) -> thousands_sep_result<char>;
template auto decimal_point_impl(locale_ref where) -> char;
template void buffer<char>::append(const char* begin, const char* end);
template void vformat_to(buffer<char>& out, basic_string_view<char> format,
                         basic_format_args<buffer_context<char>> arguments, locale_ref where);

} // namespace detail
} // namespace v9
} // namespace fmt

#endif
