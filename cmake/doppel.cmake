# SPDX-License-Identifier: Apache-2.0
# doppel_module() and doppel_test(): how a folder below src/ becomes a library and its tests.

# doppel_module(<folder> [EXCEPTIONS] [GENERAL_REGS] SOURCES … [DEPENDS …])
# A static library doppel_<name>, where <folder> "cpu/x86" gives doppel_cpu_x86. Without EXCEPTIONS it compiles with
# -fno-exceptions (architecture, ruling 1). GENERAL_REGS forbids vector registers (ruling 7). DEPENDS takes folders
# ("base") or ordinary targets ("fmt::fmt").
function(doppel_module folder)
    cmake_parse_arguments(arg "EXCEPTIONS;GENERAL_REGS" "" "SOURCES;DEPENDS" ${ARGN})
    doppel_target_name(${folder} name)
    add_library(${name} STATIC ${arg_SOURCES})
    target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR}/src)
    doppel_compile_options(${name} ${arg_EXCEPTIONS})
    if(arg_GENERAL_REGS)
        target_compile_options(${name} PRIVATE -mgeneral-regs-only -fno-stack-protector)
    endif()
    doppel_link(${name} PUBLIC ${arg_DEPENDS})
endfunction()

# doppel_test(<folder> SOURCES … [DEPENDS …] [LABELS …]): one doctest executable per folder.
function(doppel_test folder)
    cmake_parse_arguments(arg "" "NAME" "SOURCES;DEPENDS;LABELS" ${ARGN})
    doppel_target_name(${folder} module)
    set(name ${module}_test)
    if(arg_NAME)
        set(name doppel_${arg_NAME}_test)
    endif()
    add_executable(${name} ${arg_SOURCES} ${PROJECT_SOURCE_DIR}/tests/doctest_main.cpp)
    doppel_compile_options(${name} TRUE)
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR})
    if(TARGET ${module})
        target_link_libraries(${name} PRIVATE ${module})
    endif()
    doppel_link(${name} PRIVATE ${arg_DEPENDS})
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS "unit;${arg_LABELS}" TIMEOUT 300)
endfunction()

function(doppel_target_name folder out)
    string(REPLACE "/" "_" flat ${folder})
    set(${out} doppel_${flat} PARENT_SCOPE)
endfunction()

function(doppel_compile_options target exceptions)
    target_compile_features(${target} PUBLIC cxx_std_23)
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wnon-virtual-dtor
                                             -Wold-style-cast -Werror)
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
