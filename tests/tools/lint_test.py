# SPDX-License-Identifier: Apache-2.0
"""The linters find what they shall find, and nothing in good code."""

import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lint"))

import cpp_functions  # noqa: E402
import doc_links  # noqa: E402
import hot_symbols  # noqa: E402
import layers  # noqa: E402
import sizes  # noqa: E402
import spdx  # noqa: E402

TABLE = [["base"], ["state", "base"], ["bus", "state"], ["cpu", "bus"], ["cpu/x86", "cpu"],
         ["block", "state"], ["devices", "bus", "=cpu/interrupt_port.hpp"]]


class Tree:
    """A folder with the given files, for the time of a `with`."""

    def __init__(self, files: dict[str, str]):
        self.files = files

    def __enter__(self) -> Path:
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        for name, text in self.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return root

    def __exit__(self, *_) -> None:
        self.folder.cleanup()


class LayersTest(unittest.TestCase):
    def setUp(self):
        self.layers = layers.Layers(TABLE)

    def test_a_folder_may_include_itself_and_what_lies_below(self):
        for header in ("devices/x.hpp", "bus/x.hpp", "base/x.hpp"):
            self.assertIsNone(self.layers.complaint("devices/apic/y.cpp", header))

    def test_nothing_includes_upwards_or_sideways(self):
        self.assertIn("must not include", self.layers.complaint("state/y.cpp", "bus/x.hpp"))
        self.assertIn("must not include", self.layers.complaint("block/y.cpp", "bus/x.hpp"))
        self.assertIn("must not include", self.layers.complaint("cpu/y.cpp", "cpu/x86/x.hpp"))

    def test_one_header_can_be_allowed_alone(self):
        self.assertIsNone(self.layers.complaint("devices/y.cpp", "cpu/interrupt_port.hpp"))
        self.assertIsNotNone(self.layers.complaint("devices/y.cpp", "cpu/vcpu.hpp"))

    def test_a_folder_without_a_line_is_refused(self):
        self.assertIn("not in tools/lint", self.layers.complaint("utils/y.cpp", "base/x.hpp"))

    def test_slow_headers_are_refused(self):
        with Tree({}) as root:
            self.assertIn("slow", layers.check_include(self.layers, root, "a.cpp", "<", "regex"))
            self.assertIsNone(layers.check_include(self.layers, root, "a.cpp", "<", "filesystem"))

    def test_a_header_that_does_not_exist_is_refused(self):
        with Tree({}) as root:
            text = layers.check_include(self.layers, root, "bus/a.cpp", '"', "bus/b.hpp")
            self.assertIn("does not exist", text)


GOOD = '''
#define OPEN {
namespace doppel::devices {
template <typename T, std::enable_if_t<(sizeof(T) > 1), int> = 0>
class Uart final : public Device {
public:
    explicit Uart(Clock& clock) : clock_{clock}, table_{1, 2} {
        reset(); // } not a brace
    }
    void reset() override { name_ = "}{"; separator_ = '{'; count_ = 1'000; }
    bool operator==(const Uart& other) const {
        return true;
    }
    std::array<int, 2> table_{1, 2};
    static constexpr auto kSchema = schema("uart", 1, [] {
        return 1;
    });
};
auto make(int a) -> Result<Uart> {
    const auto local = [&](int b) {
        return a + b;
    };
    return local(1);
}
} // namespace
'''


class FunctionsTest(unittest.TestCase):
    def test_names_and_lengths(self):
        found = {(f.name, f.lines) for f in cpp_functions.functions(GOOD)}
        self.assertEqual(found, {("Uart", 3), ("reset", 1), ("operator==", 3), ("make", 6)})

    def test_line_of_a_function_after_comments_and_raw_strings(self):
        text = '/* {\n{ */\nauto s = R"(\n{)";\nint f() {\n}\n'
        self.assertEqual([(f.name, f.line) for f in cpp_functions.functions(text)], [("f", 5)])


class SizesTest(unittest.TestCase):
    def test_a_long_function_file_and_line_are_found(self):
        body = "    a();\n" * 60
        text = f"void f() {{\n{body}}}\n" + "\n" * 600 + "x" * 101 + "\n"
        texts = [finding.text for finding in sizes.check_file("a.cpp", text, set())]
        self.assertEqual(len(texts), 3)
        self.assertTrue(any("function f has 62 lines" in text for text in texts))

    def test_what_the_table_names_is_exempt(self):
        text = "x" * 101 + "\n"
        self.assertFalse(list(sizes.check_file("a.cpp", text, {"line"})))

    def test_python_functions_count_too(self):
        text = "def f():\n" + "    g()\n" * 60
        self.assertEqual(len(list(sizes.check_file("a.py", text, set()))), 1)


class SmallLintersTest(unittest.TestCase):
    def test_spdx(self):
        with Tree({"a.cpp": "// SPDX-License-Identifier: Apache-2.0\n", "b.cpp": "int x;\n",
                   "c": "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n"}) as root:
            self.assertEqual([f.path for f in spdx.check(root, ["a.cpp", "b.cpp", "c"])], ["b.cpp"])

    def test_doc_links(self):
        with Tree({"docs/a.md": "[b](b.md) [c](c.md#x)\n[d](https://example.org)\n",
                   "docs/b.md": ""}) as root:
            findings = doc_links.check(root, ["docs/a.md"])
            self.assertEqual([(f.line, f.text) for f in findings],
                             [(1, "link to c.md: no such file")])

    def test_hot_symbols(self):
        hot = hot_symbols.Symbols("libhot.a", "a.o:\n                 U memcpy\n"
                                  "                 U abort\n                 U other\n"
                                  "0000000000000000 T hot\n0000000000000000 W inlined\n")
        other = hot_symbols.Symbols("libother.a", "0000000000000000 T other\n")
        texts = [finding.text for finding in hot_symbols.complaints([hot, other], {"abort"})]
        self.assertEqual(len(texts), 2)
        self.assertIn("calls memcpy", texts[0])
        self.assertIn("inlined is weak", texts[1])


if __name__ == "__main__":
    unittest.main()
