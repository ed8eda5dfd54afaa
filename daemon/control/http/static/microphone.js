/** The microphone, as raw samples of 16 bits at the rate it has; the server brings them to 16 kHz. */

export class MicrophoneError extends Error {}

const SENTENCES = {
  NotAllowedError: "This page may not use the microphone. The browser's settings for this site say why.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is in use by another program.",
};

export class Microphone {
  #stream = null;
  #context = null;

  /** Opens it; `take(buffer)` gets pieces of about 20 ms. Resolves with its rate in Hz. Rejects with MicrophoneError. */
  async open(take) {
    if (navigator.mediaDevices === undefined) {
      throw new MicrophoneError("Browsers give the microphone only to pages from https:// or from localhost.");
    }
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({
        // What a call needs spoils what the features show.
        audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
      });
      this.#context = new AudioContext();
      await this.#context.audioWorklet.addModule(new URL("microphone-worklet.js", import.meta.url));
    } catch (problem) {
      this.close();
      throw new MicrophoneError(SENTENCES[problem.name] ?? `The microphone cannot be used: ${problem.message}`);
    }
    const node = new AudioWorkletNode(this.#context, "pcm", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }) => take(data);
    this.#context.createMediaStreamSource(this.#stream).connect(node);
    await this.#context.resume();
    return this.#context.sampleRate;
  }

  /** Gives it back; the browser's sign that it is in use goes out. May be called twice. */
  close() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#context?.close();
    this.#stream = null;
    this.#context = null;
  }
}
