/**
 * The recorder's end of an AudioWorklet: float quanta of 128 samples in, Int16 frames out, with their level.
 *
 * Runs on the audio thread: nothing is allocated but the frame, which is given away. No resampling: a rate that the
 * audio context does not make is declared to the server, which resamples without aliases.
 */
class Recorder extends AudioWorkletProcessor {
  #frame;
  #n = 0; // samples in it
  #peak = 0;
  #energy = 0;
  #isOver = false;

  constructor({ processorOptions }) {
    super();
    this.#frame = new Int16Array(processorOptions.frameSamples);
    this.port.onmessage = () => {
      this.#give(); // what is left; then the end
      this.#isOver = true;
      this.port.postMessage(null);
    };
  }

  process([[channel]]) {
    for (let i = 0; !this.#isOver && channel && i < channel.length; i++) {
      const value = Math.max(-1, Math.min(1, channel[i]));
      this.#peak = Math.max(this.#peak, Math.abs(value));
      this.#energy += value * value;
      this.#frame[this.#n++] = Math.round(value * 32767);
      if (this.#n === this.#frame.length) this.#give();
    }
    return !this.#isOver;
  }

  #give() {
    if (!this.#n) return;
    const samples = this.#n === this.#frame.length ? this.#frame : this.#frame.slice(0, this.#n);
    const level = { peak: this.#peak, rms: Math.sqrt(this.#energy / this.#n) };
    this.#frame = new Int16Array(this.#frame.length);
    this.#n = this.#peak = this.#energy = 0;
    this.port.postMessage({ samples, level }, [samples.buffer]);
  }
}

registerProcessor("asr-recorder", Recorder);
