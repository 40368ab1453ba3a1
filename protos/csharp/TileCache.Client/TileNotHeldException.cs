using System;

namespace TileCache.Client
{
    /// <summary>A replica does not hold what was asked for, so it does not know whether it exists.</summary>
    public sealed class TileNotHeldException : Exception
    {
        internal TileNotHeldException(string message)
            : base(message)
        {
        }
    }
}
