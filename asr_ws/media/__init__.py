"""The media process: decodes one uploaded file, which may crash or hang it, and no one else.

FFmpeg reads some 300 formats of 30 years, in C, from strangers. So each file gets a process of its own, which may use
so much memory and time, opens nothing but the bytes that it is given, and is killed with its request. It says what the
file is on one line (`asr_ws.media.wire`), and then nothing but PCM.
"""
