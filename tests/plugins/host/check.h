// Tests by name, for programs that pytest runs one test at a time.
#pragma once

#include <cstdio>
#include <functional>
#include <map>
#include <string>

inline int failures = 0;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            ++failures;                                                                            \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                   \
        }                                                                                          \
    } while (false)

using Tests = std::map<std::string, std::function<void()>>;

// Runs a test, or lists all without a name. Returns the exit code.
inline int run(Tests const& tests, char const* name)
{
    if (!name) {
        for (auto const& test : tests) {
            std::printf("%s\n", test.first.c_str());
        }
        return 0;
    }
    tests.at(name)();
    return failures == 0 ? 0 : 1;
}
