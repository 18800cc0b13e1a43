# find_package(involution) for C++ programs: linking involution::ops registers involution's operators with torch's
# dispatcher when the program starts. involution.cmake_prefix_path in Python says what to put into CMAKE_PREFIX_PATH.
get_filename_component(_involution_folder "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
file(GLOB _involution_libraries "${_involution_folder}/_ops*.so")
list(LENGTH _involution_libraries _involution_count)
if(NOT _involution_count EQUAL 1)
  set(involution_FOUND FALSE)
  set(involution_NOT_FOUND_MESSAGE
      "there must be one compiled library of operators in ${_involution_folder}, but there are ${_involution_count}. Installing involution where there is a C++ compiler builds it")
  return()
endif()
if(NOT TARGET involution::ops)
  get_filename_component(_involution_name "${_involution_libraries}" NAME)
  add_library(involution::ops INTERFACE IMPORTED)
  set_target_properties(
    involution::ops
    PROPERTIES
      INTERFACE_LINK_DIRECTORIES "${_involution_folder}"
      # Nothing of it is called by name, so the linker has to be told to keep it.
      INTERFACE_LINK_LIBRARIES "-Wl,--push-state,--no-as-needed,-l:${_involution_name},--pop-state"
      INTERFACE_LINK_OPTIONS "LINKER:-rpath,${_involution_folder}")
endif()
