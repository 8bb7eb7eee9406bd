# The sources and flags of the kernels for AVX-512 and AMX. include() this, then zeropoint_add_wide(target): the target gets
# the kernels where the compiler knows the instructions, and cpu.cpp in it learns that they are there.
include(CheckCXXCompilerFlag)

set(ZEROPOINT_WIDE_DIR ${CMAKE_CURRENT_LIST_DIR})
set(ZEROPOINT_AVX512_SOURCES ${ZEROPOINT_WIDE_DIR}/kernels_avx512.cpp ${ZEROPOINT_WIDE_DIR}/integer_vnni.cpp)
set(ZEROPOINT_AMX_SOURCES ${ZEROPOINT_WIDE_DIR}/kernels_amx.cpp ${ZEROPOINT_WIDE_DIR}/integer_amx.cpp
    ${ZEROPOINT_WIDE_DIR}/bf16_amx.cpp)
set(ZEROPOINT_AVX512_FLAGS -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
set(ZEROPOINT_AMX_FLAGS ${ZEROPOINT_AVX512_FLAGS} -mamx-tile -mamx-int8 -mamx-bf16)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")       # its AVX-512 intrinsics read a variable that they leave undefined on purpose
    list(APPEND ZEROPOINT_AVX512_FLAGS -Wno-maybe-uninitialized -Wno-uninitialized)
    list(APPEND ZEROPOINT_AMX_FLAGS -Wno-maybe-uninitialized -Wno-uninitialized)
endif()
string(REPLACE ";" " " ZEROPOINT_AMX_FLAGS_TO_CHECK "${ZEROPOINT_AMX_FLAGS}")
check_cxx_compiler_flag("${ZEROPOINT_AMX_FLAGS_TO_CHECK}" ZEROPOINT_COMPILES_WIDE)

function(zeropoint_add_wide target)
    if(NOT ZEROPOINT_COMPILES_WIDE)
        return()
    endif()
    set_source_files_properties(${ZEROPOINT_AVX512_SOURCES} PROPERTIES COMPILE_OPTIONS "${ZEROPOINT_AVX512_FLAGS}")
    set_source_files_properties(${ZEROPOINT_AMX_SOURCES} PROPERTIES COMPILE_OPTIONS "${ZEROPOINT_AMX_FLAGS}")
    target_sources(${target} PRIVATE ${ZEROPOINT_AVX512_SOURCES} ${ZEROPOINT_AMX_SOURCES})
    target_compile_definitions(${target} PRIVATE ZEROPOINT_HAS_WIDE)
endfunction()
