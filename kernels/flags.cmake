# The compiler's options for kernels: arithmetic as written, and each ISA's file with its flags.

# GCC contracts a*b+c into FMA by default, nvcc too; exactness (same codes everywhere) needs it off.
# nvcc takes the assignment of a [[nodiscard]] Status for a Status that is thrown away (2810).
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>
  "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;--diag-suppress=2810>")

# Per-ISA files carry their flags in their names.
function(nibble_kernel_flags sources)
  foreach(source ${sources})
    if(source MATCHES "x86_avx2[^/]*\\.cpp$")
      set(flags -mavx2 -mfma -mf16c)
    elseif(source MATCHES "x86_avx512vnni[^/]*\\.cpp$")
      set(flags -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
    elseif(source MATCHES "x86_avx512bf16[^/]*\\.cpp$")
      set(flags -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16
        -mavx512vbmi)
    elseif(source MATCHES "x86_avxvnni[^/]*\\.cpp$")
      set(flags -mavx2 -mfma -mf16c -mavxvnni)
    elseif(source MATCHES "x86_amx[^/]*\\.cpp$")
      set(flags -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mamx-tile -mamx-int8
        -mamx-bf16)
    else()
      continue()
    endif()
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}"
      SKIP_PRECOMPILE_HEADERS ON)  # other flags than the header's
  endforeach()
endfunction()
