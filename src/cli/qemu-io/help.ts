export const HELP = `Usage: qemu-io [OPTIONS]... [-c STRING]... [file]
Single requests on disk images, by blockplane: the options, commands and output of QEMU's qemu-io.

  --object OBJECTDEF   make an object, such as a secret
  --image-opts         the file is the text of a tree of options
  -c, --cmd STRING     run a command; without any, they are read from the standard input
  -f, --format FMT     the format of the image
  -r, --read-only      open it for reading
  -s, --snapshot       what is written is gone afterwards
  -n, --nocache        without the host's cache: -t none
  -C, --copy-on-read   keep what is read from backing files
  -m, --misalign       accepted, and of no effect
  -k, --native-aio     -i native
  -i, --aio=MODE       threads, native or io_uring
  -t, --cache=MODE     cache mode of the image
  -d, --discard=MODE   ignore or unmap
  -T, --trace          accepted, and of no effect
  -U, --force-share    whatever locks others hold
  -h, --help           show this and exit
  -V, --version        show the version and exit

'qemu-io -c help' lists the commands.
`;
