# Sets KERNELS to the CPU kernel sources below `folder` that this processor family can run, each
# with the flags of the instruction set that stands in its name. Needs no torch.
macro(find_kernels folder)
  file(GLOB KERNELS CONFIGURE_DEPENDS ${folder}/*.cpp)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(FILTER KERNELS EXCLUDE REGEX "_avx(2|512.*)\\.cpp$")
  endif()
  foreach(file ${KERNELS})
    if(file MATCHES "_avx2\\.cpp$")
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma")
    elseif(file MATCHES "_avx512(.*)\\.cpp$")
      set(flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512)
      if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # false alarms inside gcc's own intrinsics
        list(APPEND flags -Wno-uninitialized -Wno-maybe-uninitialized)
      endif()
      if(CMAKE_MATCH_1)  # what AVX-512 leaves to some CPUs
        list(APPEND flags -mavx512${CMAKE_MATCH_1})
      endif()
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${flags}")
    endif()
  endforeach()
endmacro()
