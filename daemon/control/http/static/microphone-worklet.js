/** Runs on the browser's audio thread: samples of the microphone as 16 bits, in pieces of about 20 ms. */

class Pcm extends AudioWorkletProcessor {
  constructor() {
    super();
    this.size = Math.round(sampleRate / 50);
    this.samples = new Int16Array(this.size);
    this.filled = 0;
  }

  process([input]) {
    const channel = input[0];
    if (channel === undefined) {
      return true; // nothing is connected yet
    }
    for (const value of channel) {
      this.samples[this.filled] = Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
      this.filled += 1;
      if (this.filled === this.size) {
        this.port.postMessage(this.samples.buffer, [this.samples.buffer]);
        this.samples = new Int16Array(this.size);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("pcm", Pcm);
