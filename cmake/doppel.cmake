# SPDX-License-Identifier: Apache-2.0
# How a folder becomes a library, its tests, a program, a fuzz target. Small functions, no magic.

# Sanitizers go on everything or nothing: a mixed program reports what is not there.
if(DOPPEL_SANITIZE)
    add_compile_options(
        -fsanitize=${DOPPEL_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    add_link_options(-fsanitize=${DOPPEL_SANITIZE})
    if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
        # g++ 12 sees uninitialised reads in its own instrumentation.
        add_compile_options(-Wno-maybe-uninitialized -Wno-error=tsan)
    endif()
    if(DOPPEL_FUZZ)
        add_compile_options(-fsanitize=fuzzer-no-link)
    endif()
endif()

add_custom_target(programs) # what a user runs; make build builds just these
add_custom_target(fuzzers)
add_custom_target(timed_fuzzers) # those that tests run for some time

# Every folder below <part> with a CMakeLists.txt of its own; order does not matter to targets.
function(doppel_add_folders part)
    file(GLOB_RECURSE lists CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} ${part}/CMakeLists.txt)
    list(SORT lists)
    foreach(list ${lists})
        get_filename_component(folder ${list} DIRECTORY)
        add_subdirectory(${PROJECT_SOURCE_DIR}/${folder} ${PROJECT_BINARY_DIR}/${folder})
    endforeach()
endfunction()

# doppel_module(<folder> [EXCEPTIONS] [GENERAL_REGS] [LINK_TIME] [SOURCES …] [DEPENDS …])
# A static library doppel_<name>, where <folder> "cpu/x86" gives doppel_cpu_x86. Without EXCEPTIONS
# it compiles with -fno-exceptions. GENERAL_REGS forbids vector registers and sanitizers: for code
# that translated code calls while they hold the guest's. LINK_TIME optimizes across its files where
# a program with LINK_TIME is linked; not for GENERAL_REGS. DEPENDS takes folders ("base") or
# ordinary targets ("fmt::fmt"). Without SOURCES it is headers only.
function(doppel_module folder)
    cmake_parse_arguments(arg "EXCEPTIONS;GENERAL_REGS;LINK_TIME" "" "SOURCES;DEPENDS" ${ARGN})
    doppel_target_name(${folder} name)
    if(NOT arg_SOURCES) # headers only
        add_library(${name} INTERFACE)
        target_include_directories(${name} INTERFACE ${PROJECT_SOURCE_DIR}/src)
        doppel_link(${name} INTERFACE ${arg_DEPENDS})
        return()
    endif()
    add_library(${name} STATIC ${arg_SOURCES})
    target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR}/src)
    doppel_compile_options(${name} ${arg_EXCEPTIONS})
    if(arg_GENERAL_REGS)
        doppel_general_regs(${name})
    endif()
    if(arg_LINK_TIME AND DOPPEL_LINK_TIME) # lld and the tests link the ordinary half of the objects
        target_compile_options(${name} PRIVATE -O3 -flto=auto -ffat-lto-objects)
    endif()
    doppel_link(${name} PUBLIC ${arg_DEPENDS})
endfunction()

# In optimized builds by g++, whose link-time optimization lld does not know.
set(DOPPEL_LINK_TIME OFF)
if(CMAKE_BUILD_TYPE STREQUAL Release AND CMAKE_CXX_COMPILER_ID STREQUAL GNU AND NOT DOPPEL_SANITIZE)
    set(DOPPEL_LINK_TIME ON)
endif()

function(doppel_general_regs target)
    if(CMAKE_CXX_COMPILER_ID STREQUAL Clang)
        # clang's -mgeneral-regs-only rejects the long double in libstdc++'s headers.
        target_compile_options(${target} PRIVATE -mno-sse -mno-mmx)
    else()
        target_compile_options(${target} PRIVATE -mgeneral-regs-only)
    endif()
    # -O2 in every build: without it small functions of the standard library's headers stay weak
    # symbols, and the linker might take another library's copy, which uses vector registers.
    target_compile_options(${target} PRIVATE -fno-stack-protector -O2)
    if(DOPPEL_SANITIZE)
        target_compile_options(${target} PRIVATE -fno-sanitize=all)
    endif()
    set_property(GLOBAL APPEND PROPERTY DOPPEL_HOT_LIBRARIES ${target})
endfunction()

# What the GENERAL_REGS modules call must leave the vector registers alone: nm's word for it.
function(doppel_check_hot_symbols)
    get_property(hot GLOBAL PROPERTY DOPPEL_HOT_LIBRARIES)
    if(hot AND NOT DOPPEL_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
        list(TRANSFORM hot REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE libraries)
        doppel_script_test(hot_symbols COMMAND python3 tools/lint/hot_symbols.py ${libraries})
    endif()
endfunction()

# doppel_program(<folder> NAME <executable> [INTERNAL] [LINK_TIME] SOURCES … [DEPENDS …]): an
# executable in bin/, installed by make install; INTERNAL: for other programs of ours, installed in
# libexec/. LINK_TIME: see doppel_module().
function(doppel_program folder)
    cmake_parse_arguments(arg "INTERNAL;LINK_TIME" "NAME" "SOURCES;DEPENDS" ${ARGN})
    add_executable(${arg_NAME} ${arg_SOURCES})
    doppel_compile_options(${arg_NAME} TRUE)
    target_include_directories(${arg_NAME} PRIVATE ${PROJECT_SOURCE_DIR}/src)
    target_compile_definitions(${arg_NAME} PRIVATE DOPPEL_VERSION="${PROJECT_VERSION}")
    set_target_properties(${arg_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
    doppel_link(${arg_NAME} PRIVATE ${arg_DEPENDS})
    if(arg_LINK_TIME AND DOPPEL_LINK_TIME)
        target_link_options(${arg_NAME} PRIVATE -fuse-ld=bfd -flto=auto)
    endif()
    add_dependencies(programs ${arg_NAME})
    set(place ${CMAKE_INSTALL_BINDIR})
    if(arg_INTERNAL)
        set(place ${CMAKE_INSTALL_LIBEXECDIR}/doppel)
    endif()
    install(TARGETS ${arg_NAME} RUNTIME DESTINATION ${place})
endfunction()

# doctest's own code: the largest file of every test, so it is compiled once.
add_library(doppel_doctest_main STATIC tests/doctest_main.cpp)
target_compile_features(doppel_doctest_main PRIVATE cxx_std_23)
target_compile_options(doppel_doctest_main PRIVATE -O0)

# doppel_test(<folder> [NAME name] SOURCES … [DEPENDS …] [LABELS …] [TIMEOUT seconds]): one doctest
# executable per folder. The label is `unit` unless LABELS says otherwise; `full` keeps it out of
# make test.
function(doppel_test folder)
    cmake_parse_arguments(arg "" "NAME;TIMEOUT" "SOURCES;DEPENDS;LABELS" ${ARGN})
    doppel_target_name(${folder} module)
    set(name ${module}_test)
    if(arg_NAME)
        set(name doppel_${arg_NAME}_test)
    endif()
    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE doppel_doctest_main)
    doppel_compile_options(${name} TRUE)
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test)
    if(TARGET ${module})
        target_link_libraries(${name} PRIVATE ${module})
    endif()
    doppel_link(${name} PRIVATE ${arg_DEPENDS})
    doppel_script_test(${name} COMMAND ${name} LABELS ${arg_LABELS} TIMEOUT ${arg_TIMEOUT})
endfunction()

# doppel_script_test(<name> COMMAND … [LABELS …] [TIMEOUT seconds]): any command as a test, run in
# the source tree.
function(doppel_script_test name)
    cmake_parse_arguments(arg "" "TIMEOUT" "COMMAND;LABELS" ${ARGN})
    if(NOT arg_LABELS)
        set(arg_LABELS unit)
    endif()
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 300)
    endif()
    add_test(NAME ${name} COMMAND ${arg_COMMAND} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT})
endfunction()

# doppel_fuzz(<target> SOURCES … [DEPENDS …] [TIMED]): LLVMFuzzerTestOneInput in fuzz/<target>/,
# seeds in fuzz/<target>/seeds. With DOPPEL_FUZZ it is a libFuzzer executable; without, a test that
# replays the seeds, and for TIMED two that run the executable of build/fuzz: ten seconds, and ten
# minutes.
function(doppel_fuzz target)
    cmake_parse_arguments(arg "TIMED" "" "SOURCES;DEPENDS" ${ARGN})
    set(name fuzz_${target})
    add_executable(${name} ${arg_SOURCES})
    doppel_compile_options(${name} TRUE)
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR})
    doppel_link(${name} PRIVATE ${arg_DEPENDS})
    set_target_properties(${name} PROPERTIES
        OUTPUT_NAME ${target} RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz/bin)
    add_dependencies(fuzzers ${name})
    if(DOPPEL_FUZZ)
        target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    else()
        target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/fuzz/replay_main.cpp)
        file(GLOB seeds CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/fuzz/${target}/seeds/*)
        doppel_script_test(${name} COMMAND ${name} ${seeds})
    endif()
    if(arg_TIMED)
        add_dependencies(timed_fuzzers ${name})
    endif()
    if(arg_TIMED AND NOT DOPPEL_FUZZ)
        set(run ${PROJECT_SOURCE_DIR}/tools/run-fuzzers)
        set(build ${PROJECT_SOURCE_DIR}/build/fuzz)
        doppel_script_test(${name}_run LABELS system COMMAND ${run} --fresh ${build} 10 ${target})
        doppel_script_test(${name}_long LABELS full TIMEOUT 1200
            COMMAND ${run} ${build} 600 ${target})
    endif()
endfunction()

function(doppel_target_name folder out)
    string(REPLACE "/" "_" flat ${folder})
    set(${out} doppel_${flat} PARENT_SCOPE)
endfunction()

function(doppel_compile_options target exceptions)
    target_compile_features(${target} PUBLIC cxx_std_23)
    target_compile_options(${target} PRIVATE
        -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wnon-virtual-dtor -Wold-style-cast -Werror)
    if(CMAKE_CXX_COMPILER_ID STREQUAL Clang)
        # g++'s -Wconversion leaves signs alone; everything else clang has to say is welcome.
        # The instruction tables take more steps to compute than clang allows by default.
        target_compile_options(${target} PRIVATE
            -Wthread-safety -Wno-sign-conversion -fconstexpr-steps=100000000)
    endif()
    if(NOT exceptions)
        target_compile_options(${target} PRIVATE -fno-exceptions)
    endif()
endfunction()

# Folders become their targets, everything else passes through.
function(doppel_link target scope)
    foreach(dependency ${ARGN})
        doppel_target_name(${dependency} module)
        if(EXISTS ${PROJECT_SOURCE_DIR}/src/${dependency}/CMakeLists.txt)
            target_link_libraries(${target} ${scope} ${module})
        else()
            target_link_libraries(${target} ${scope} ${dependency})
        endif()
    endforeach()
endfunction()
