# Tests of the house itself: floors, completeness, the deploy preset, README, what must not compile.
# Included at the end of tests/CMakeLists.txt, when every other target exists.
set(house ${CMAKE_CURRENT_LIST_DIR})

function(add_house_test name)
  add_test(NAME house.${name} COMMAND bash ${ARGN})
  set_tests_properties(house.${name} PROPERTIES LABELS house TIMEOUT 300)
endfunction()

add_house_test(floors ${house}/floors.sh ${CMAKE_SOURCE_DIR})
add_house_test(floors_catch ${house}/floors_catch.sh ${house}/floors.sh)

# The sources of every target of tests/, for the check that no test file was left out.
get_property(test_targets DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} PROPERTY BUILDSYSTEM_TARGETS)
set(built "")
set(sanitized "")
foreach(target ${test_targets})
  get_target_property(sources ${target} SOURCES)
  foreach(source ${sources})
    get_filename_component(path ${source} ABSOLUTE BASE_DIR ${CMAKE_CURRENT_SOURCE_DIR})
    string(APPEND built "${path}\n")
  endforeach()
  if(target MATCHES "^(kernels|export|corrupt)_.*_test$")
    list(APPEND sanitized ${target})
  endif()
endforeach()
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/built_tests.txt "${built}")
add_house_test(every_test_is_built ${house}/every_test_is_built.sh ${CMAKE_CURRENT_SOURCE_DIR}
  ${CMAKE_CURRENT_BINARY_DIR}/built_tests.txt ${NIBBLE_WITH_TORCH})

# What the asan preset builds: the tests of everything that needs no LibTorch and parses bytes.
add_custom_target(sanitized_tests DEPENDS ${sanitized})

if(NOT NIBBLE_SANITIZE)
  add_house_test(examples_run ${house}/examples_run.sh ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/examples
    ${NIBBLE_WITH_TORCH})
endif()

# These run the whole toolkit; once, in the build that has everything.
if(NIBBLE_WITH_TORCH AND NOT NIBBLE_SANITIZE)
  cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
  # The deploy preset's command from this build's libraries, which are the same without
  # LibTorch; the preset itself is built under the label long.
  add_executable(nibble_without_torch ${CMAKE_SOURCE_DIR}/recipes/cli/main.cpp
    ${CMAKE_SOURCE_DIR}/recipes/torch/no_torch.cpp)
  add_dependencies(nibble_without_torch nibble_cli)
  target_link_libraries(nibble_without_torch PRIVATE $<TARGET_FILE:nibble_cli> nibble_recipes
    nibble_export nibble_kernels Boost::program_options)
  add_house_test(deploy_links_no_torch ${house}/deploy_links_no_torch.sh ${CMAKE_SOURCE_DIR}
    $<TARGET_FILE:nibble_without_torch>)
  add_test(NAME long.deploy_builds COMMAND bash ${house}/deploy_builds.sh ${CMAKE_SOURCE_DIR} ${cores})
  set_tests_properties(long.deploy_builds PROPERTIES LABELS long TIMEOUT 1800 RUN_SERIAL ON)
  add_house_test(readme_commands ${house}/readme_commands.sh ${CMAKE_SOURCE_DIR} $<TARGET_FILE:nibble>)
  add_house_test(installs ${house}/installs.sh ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
  set_tests_properties(house.deploy_links_no_torch house.readme_commands house.installs PROPERTIES
    TIMEOUT 900 RUN_SERIAL ON)
endif()

# What must not compile. Each file also compiles as it stands, so that it fails for one reason.
file(GLOB must_fail CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/compile_fail/*.cpp)
foreach(source ${must_fail})
  get_filename_component(name ${source} NAME_WE)
  add_house_test(compile_fail.${name} ${house}/compile_fail.sh ${source} ${CMAKE_CXX_COMPILER}
    -std=c++20 -I${CMAKE_SOURCE_DIR} -Wall -Wextra)
endforeach()
